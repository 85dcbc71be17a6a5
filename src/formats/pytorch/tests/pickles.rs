//! Tests of hostile pickles, in the older form.

use super::*;

#[test]
fn names_that_reach_the_system_are_refused_in_full() {
    for (pickle, name) in [
        (&b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."[..], "os.system"),
        (b"\x80\x02cposix\nsystem\n.", "posix.system"),
        (b"\x80\x02c__builtin__\neval\n.", "__builtin__.eval"),
        (b"\x80\x02cbuiltins\nexec\n.", "builtins.exec"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", "builtins.getattr"),
        (b"\x80\x04X\x08\0\0\0builtins\x8d\x10\0\0\0\0\0\0\0object.__class__\x93.", "builtins.object.__class__"),
        (b"\x80\x02(S'true'\nios\nsystem\n.", "os.system"),
        (b"\x80\x02ctorch.hub\nload\n.", "torch.hub.load"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "torch._utils._rebuild_tensor_v2.__globals__"),
        (b"\x80\x02cos.\x1b[2J\nsystem\n.", "os.\\u{1b}[2J.system"),
    ] {
        let message = refusal(&legacy(pickle));
        let expected = format!("expected only classes and functions that checkpoints need, found {name}; loading");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn lengths_past_the_files_end_are_refused_before_anything_is_allocated() {
    for (pickle, expected) in [
        (&b"\x80\x02X\xff\xff\xff\xff"[..], "expected 4294967295 bytes more, found"),
        (b"\x80\x04\x8d\0\xe4\x0b\x54\x02\0\0\0", "expected 10000000000 bytes more, found"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "expected 18446744073709551615 bytes more, found"),
        (b"\x80\x04\x8e\0\xe4\x0b\x54\x02\0\0\0", "expected 10000000000 bytes more, found"),
        (b"\x80\x05\x96\0\xe4\x0b\x54\x02\0\0\0", "expected 10000000000 bytes more, found"),
        (b"\x80\x04\x95\0\xe4\x0b\x54\x02\0\0\0", "bytes, found 10000000000"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f", "expected 2147483647 bytes more, found"),
        (b"\x80\x02T\xff\xff\xff\x7f", "expected 2147483647 bytes more, found"),
        (b"\x80\x02B\xff\xff\xff\xff", "expected 4294967295 bytes more, found"),
        (b"\x80\x02U\xff", "expected 255 bytes more, found"),
    ] {
        let message = refusal(&legacy(pickle));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn breaches_of_the_machine_are_refused() {
    let line = [b"\x80\x02c", [b'a'; 5000].as_slice()].concat();
    for (pickle, expected) in [
        (&b"\x80\x06."[..], "expected a protocol from 0 to 5, found 6"),
        (b"\x80\x02.", "expected a value on the stack, found none"),
        (b"\x80\x02N(.", "expected a value on the stack, found none"),
        (b"\x80\x02N(\x85.", "expected 1 values on the stack, found 0"),
        (b"\x80\x02t.", "expected a mark on the stack, found none"),
        (b"\x80\x02h\x05.", "expected a remembered value, found none at 5"),
        (b"\x80\x02j\xff\xff\xff\xff.", "found none at 4294967295"),
        (b"\x80\x02K\x01)R.", "expected a class or function to call, found something else"),
        (b"\x80\x02ctorch\nfloat32\n)R.", "expected a class or function to call, found float32"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01R.", "expected a tuple, found something else"),
        (b"\x80\x02K\x01}b.", "expected an instance to give a state to"),
        (b"\x80\x02]K\x01K\x02s.", "expected a dictionary to add to"),
        (b"\x80\x02}(K\x01u.", "expected a value for each key, found a key without one"),
        (b"\x80\x02}K\x01a.", "expected a list or a set to add to"),
        (b"\x80\x02\x82\x01.", "expected names in full, found an extension code"),
        (b"\x80\x05\x97.", "expected all data in the pickle, found a buffer outside it"),
        (b"Pstorage\n.", "expected storages named by tuples"),
        (b"\x80\x02K\x01Q.", "expected a tuple, found something else"),
        (b"\x80\x02X\x06\0\0\0moduleNNN(X\x06\0\0\0moduletQ.", "a whole module with its source code"),
        (b"\x80\x02X\x01\0\0\0\xff.", "expected a text in UTF-8"),
        (b"Ispam\n.", "expected a number, found \"spam\""),
        (b"L12x4L\n.", "expected a number"),
        (b"Sspam\n.", "expected a quoted text"),
        (b"\x80\x02\xff.", "expected an opcode of pickle, found byte 0xff"),
        (&line, "expected a line of at most 1024 bytes, found no line end"),
    ] {
        let message = refusal(&legacy(pickle));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn pop_takes_a_mark_off_as_python_lets_it() {
    let file = open(&legacy(b"\x80\x02K\x07(0.")).unwrap();
    assert_eq!(file.others(), [("value".to_owned(), "7".to_owned())]);
}

#[test]
fn every_opcode_on_every_small_stack_is_a_value_or_an_error() {
    let stacks: [&[u8]; 8] = [
        b"",
        b"N",
        b"((",
        b"(NN",
        b"]N",
        b"}NN",
        b"ccollections\nOrderedDict\n)",
        b"ctorch._utils\n_rebuild_parameter\n)",
    ];
    for opcode in 0..=255 {
        for stack in stacks {
            for operand in [&b""[..], b"\0", b"\x01\0\0\0\0\0\0\0x", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"1\n1\n"]
            {
                let pickle = [b"\x80\x04", stack, &[opcode], operand, b"."].concat();
                if let Ok(file) = open(&legacy(&pickle)) {
                    read_all(&file);
                }
            }
        }
    }
}

#[test]
fn counts_stop_at_their_limits() {
    let repeated = |before: &[u8], what: &[u8], times: usize| legacy(&[before, &what.repeat(times), b"."].concat());
    for (file, expected) in [
        (repeated(b"\x80\x02", b"N", 1 << 23), "expected at most 4194304 values on the stack"),
        (repeated(b"\x80\x02", b"(", 1 << 17), "expected at most 65536 open marks"),
        (repeated(b"\x80\x02", b")0", 1 << 23), "expected at most 4194304 objects"),
        (repeated(b"\x80\x02]", b"Na", (1 << 24) + 1), "expected at most 16777216 values in containers"),
        (repeated(b"\x80\x02]N", b"\x94", (1 << 22) + 1), "expected at most 4194304 remembered values"),
    ] {
        let message = refusal(&file);
        assert!(message.contains(expected), "{message}");
    }
}

/// A dictionary `{"w": levels of (x, x) around a tensor}`: a few bytes give 2^levels names.
fn doubled(levels: usize, open: &[u8], close: &[u8]) -> Vec<u8> {
    let mut inner = tensor("ByteStorage", 1, 0, &[], &[]);
    inner.extend(b"q\0");
    for _ in 0..levels {
        inner.extend(open);
        inner.extend(b"h\0h\0");
        inner.extend(close);
        inner.extend(b"q\0");
    }
    named(&inner)
}

#[test]
fn names_are_counted_however_few_bytes_make_them() {
    let tuples = doubled(30, b"0", b"\x86");
    let message = refusal(&legacy_with(&tuples, 1, &[7]));
    assert!(message.contains("expected at most 1048576 names"), "{message}");
    let small = open(&legacy_with(&doubled(3, b"0", b"\x86"), 1, &[7])).unwrap();
    assert_eq!(small.tensors().len(), 8);
    assert_eq!(small.tensors()[7].name, "w.1.1.1");
    // Without a tensor inside, nested tuples are described in one line, however many values they
    // contain.
    let nested = [b"\x80\x02N\x85q\0".to_vec(), b"0h\0h\0\x86q\0".repeat(1000), b".".to_vec()].concat();
    let file = open(&legacy(&nested)).unwrap();
    assert_eq!(file.others(), [("value".to_owned(), "a tuple of 2".to_owned())]);
    // The limit on names counts their bytes.
    let key = [&b"X\0\0\x10\0"[..], &vec![b'k'; 1 << 20], b"q\x01"].concat();
    let mut long = [b"\x80\x02", &key[..], b"0", &tensor("ByteStorage", 1, 0, &[], &[]), b"q\0"].concat();
    for _ in 0..9 {
        long.extend(b"0}(h\x01h\0X\x01\0\0\0kh\0uq\0");
    }
    long.push(b'.');
    let message = refusal(&legacy_with(&long, 1, &[7]));
    assert!(message.contains("names of 134217728 bytes together"), "{message}");
}

#[test]
fn nesting_without_end_costs_nothing_and_is_refused_around_tensors() {
    let deep = |inner: &[u8]| [b"\x80\x02", &b"]".repeat(100_000)[..], inner, &b"a".repeat(100_000), b"."].concat();
    let file = open(&legacy(&deep(b"N"))).unwrap();
    assert_eq!(file.others().len(), 1);
    let around = deep(&tensor("ByteStorage", 1, 0, &[], &[]));
    assert!(refusal(&legacy_with(&around, 1, &[7])).contains("expected at most 100 containers inside each other"));
    // A list that contains itself, alone and next to a tensor.
    assert!(open(&legacy(b"\x80\x02]q\0h\0a.")).is_ok());
    let itself = [b"\x80\x02]q\0h\0a", &tensor("ByteStorage", 1, 0, &[], &[])[..], b"a."].concat();
    assert!(refusal(&legacy_with(&itself, 1, &[7])).contains("more, or one that contains itself"));
    let dictionary = b"\x80\x02}q\0X\x01\0\0\0ah\0s.";
    assert!(refusal(&legacy(dictionary)).contains("more, or one that contains itself"));
}

#[test]
fn names_that_stand_twice_are_refused() {
    let one = tensor("ByteStorage", 1, 0, &[], &[]);
    let twice = [b"\x80\x02}(X\x01\0\0\0w", &one[..], b"X\x01\0\0\0w", &one, b"u."].concat();
    assert!(refusal(&legacy_with(&twice, 1, &[7])).contains("tensor \"w\": expected each name once, found it twice"));
    let none = [b"\x80\x02}(X\x01\0\0\0w", &one[..], b"X\x01\0\0\0wNu."].concat();
    assert!(refusal(&legacy_with(&none, 1, &[7])).contains("expected each name once"));
    // A key with a dot has the same name as a nested key.
    let dotted = [b"\x80\x02}(X\x03\0\0\0a.b", &one[..], b"X\x01\0\0\0a}X\x01\0\0\0b", &one, b"su."].concat();
    assert!(refusal(&legacy_with(&dotted, 1, &[7])).contains("tensor \"a.b\": expected each name once"));
}

#[test]
fn tensors_where_no_name_can_reach_them_are_named() {
    let one = tensor("ByteStorage", 1, 0, &[], &[]);
    let set = [b"\x80\x02\x8f(", &one[..], b"\x90."].concat();
    let described = |pickle: &[u8]| {
        let file = open(&legacy_with(pickle, 1, &[7])).unwrap();
        assert!(file.tensors().is_empty());
        (file.others().to_vec(), file.check_has_tensors().unwrap_err().to_string())
    };
    let (others, error) = described(&set);
    assert_eq!(others, [("value".to_owned(), "a set of 1, with 1 tensor out of reach".to_owned())]);
    assert!(error.contains("found none, and 1 inside other objects, which are out of reach"), "{error}");
    for class in ["argparse\nNamespace", "models.settings\nOptions"] {
        let start = [b"\x80\x02}X\x01\0\0\0ac", class.as_bytes(), b"\n)\x81}X\x01\0\0\0w"].concat();
        let (others, _) = described(&[&start[..], &one, b"sbs."].concat());
        let expected = format!("{}, with 1 tensor out of reach", class.replace('\n', "."));
        assert_eq!(others, [("a".to_owned(), expected)]);
    }
    let key = [b"\x80\x02}", &one[..], b"Ns."].concat();
    assert!(refusal(&legacy_with(&key, 1, &[7])).contains("expected texts or numbers as keys, found a tensor"));
}

#[test]
fn tensors_outside_their_storage_are_refused_by_name() {
    let max = i64::MAX;
    let cases: &[(i64, &[i64], &[i64], &str)] = &[
        (0, &[2, 4], &[4, 1], "expected elements inside the 6 elements of storage \"0\", found offset 0"),
        (7, &[], &[], "offset 7, shape [], strides []: up to element 7"),
        (6, &[], &[], "up to element 6"),
        (7, &[0], &[1], "up to element 7"),
        (1, &[6], &[1], "up to element 6"),
        (0, &[2], &[6], "up to element 6"),
        (0, &[3, 2], &[3, 1], "up to element 7"),
        (max, &[1], &[1], "up to element 9223372036854775807"),
        (max, &[2, 2], &[max, max], "up to element 2^64 or more"),
        (0, &[max, max], &[0, 0], "expected a size below 2^63 bytes"),
        (0, &[max, max, 0], &[0, 0, 0], "expected a size below 2^63 bytes"),
        (0, &[1 << 62], &[0], "expected a size below 2^63 bytes"),
        (0, &[1 << 40], &[0], "expected at most 1073741824 bytes where elements are repeated"),
        (0, &[2, 2], &[1], "expected 2 strides, found 1"),
        (0, &[2], &[-1], "expected whole numbers, none negative"),
        (0, &[-2], &[1], "expected whole numbers, none negative"),
        (-1, &[2], &[1], "expected an offset, found -1"),
        (0, &[1; 65], &[1; 65], "expected at most 64 dimensions, found 65"),
    ];
    for (offset, shape, strides, expected) in cases {
        let pickle = named(&tensor("FloatStorage", 6, *offset, shape, strides));
        let message = refusal(&legacy_with(&pickle, 6, &[0; 24]));
        assert!(message.contains(expected), "{shape:?} {strides:?}\n{message}");
    }
    // Views that just fit into the storage are read.
    for (offset, shape, strides) in
        [(0, &[2, 3][..], &[3, 1][..]), (5, &[], &[]), (6, &[0, 2], &[9, 9]), (0, &[1, 6], &[999, 1]), (3, &[4], &[0])]
    {
        let pickle = named(&tensor("FloatStorage", 6, offset, shape, strides));
        read_all(&open(&legacy_with(&pickle, 6, &[0; 24])).unwrap());
    }
}

#[test]
fn storages_that_disagree_with_their_file_are_refused() {
    let pickle = named(&tensor("FloatStorage", 6, 0, &[6], &[1]));
    let negative = named(&tensor("FloatStorage", -6, 0, &[6], &[1]));
    let missing = [LEGACY_HEAD, &pickle, b"\x80\x02]."].concat();
    let unknown = [LEGACY_HEAD, &pickle, b"\x80\x02]X\x01\0\0\x001a."].concat();
    let no_list = [LEGACY_HEAD, &pickle, b"\x80\x02}."].concat();
    let twice = [LEGACY_HEAD, &pickle, b"\x80\x02](X\x01\0\0\x000X\x01\0\0\x000e.", &[0; 64]].concat();
    let untyped = [
        b"\x80\x02}X\x01\0\0\0w(X\x07\0\0\0storagectorch.storage\nTypedStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQs.",
        &b""[..],
    ]
    .concat();
    for (file, expected) in [
        (legacy_with(&pickle, 5, &[0; 24]), "storage \"0\": expected 6 elements of float32, found 20 bytes"),
        (legacy_with(&pickle, 6, &[0; 23]), "expected 6 elements of float32, found the file's end"),
        (legacy_with(&pickle, u64::MAX, &[0; 24]), "found the file's end"),
        (legacy_with(&pickle, u64::MAX / 4, &[0; 24]), "found the file's end"),
        (legacy_with(&pickle, 6, &[0; 25]), "found 1 bytes more"),
        (legacy_with(&negative, 6, &[0; 24]), "expected a number of elements, found -6"),
        (missing, "expected its key in the list of storages, found only other keys"),
        (unknown, "expected storages that the checkpoint refers to"),
        (no_list, "expected a list of storages"),
        (twice, "expected each storage once, found it twice"),
        (legacy(&untyped), "expected a class of storages"),
    ] {
        let message = refusal(&file);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn views_of_the_older_form_stay_inside_their_storage() {
    let view = |offset: i64, len: i64| {
        let whole = tensor("ByteStorage", 6, 1, &[2], &[1]);
        let at = whole.windows(2).position(|w| w == b"tQ").unwrap();
        let text = b"X\x01\0\0\0v";
        let view = [b"(", &text[..], &numbers(&[offset, len])[1..]].concat();
        legacy_with(&named(&[&whole[..at], &view, &whole[at..]].concat()), 6, &[0, 1, 2, 3, 4, 5])
    };
    assert_eq!(*open(&view(2, 3)).unwrap().bytes(0), [3, 4]);
    assert!(refusal(&view(2, 2)).contains("expected elements inside the 2 elements"));
    assert!(refusal(&view(2, 5)).contains("expected elements inside the 6 elements"));
    assert!(refusal(&view(i64::MAX, i64::MAX)).contains("expected elements inside"));
    assert!(refusal(&view(-1, 2)).contains("expected a view inside its storage"));
}

#[test]
fn a_wrapping_in_a_wrapping_is_refused() {
    let pickle = b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\nq\0(h\0ctorch\nTensor\n)NtR.";
    let message = refusal(&legacy(pickle));
    assert!(message.contains("expected a function that makes a tensor, found torch._tensor._rebuild_from_type_v2"));
}

/// The opcodes that make an object of `class`, given as `module\nname`, with the entries `a: 1`.
fn settings(class: &str) -> Vec<u8> {
    [b"c", class.as_bytes(), b"\n)\x81X\x01\0\0\0aK\x01s}X\x01\0\0\0aK\x01sb"].concat()
}

#[test]
fn objects_of_classes_that_are_not_read_are_described_and_noted_once() {
    let one = tensor("ByteStorage", 1, 0, &[], &[]);
    let dictionary = |class: &str| {
        let (first, second) = (settings(class), settings(class));
        let parts =
            [b"\x80\x02}(X\x01\0\0\0c", &first[..], b"X\x01\0\0\0d", &second, b"X\x01\0\0\0w", &one, b"u."].concat();
        legacy_with(&parts, 1, &[7])
    };
    let file = open(&dictionary("models.config\nOptions")).unwrap();
    assert_eq!(file.tensors()[0].name, "w");
    let all = |names: &[(&str, &str)]| -> Vec<(String, String)> {
        names.iter().map(|(name, what)| ((*name).to_owned(), (*what).to_owned())).collect()
    };
    assert_eq!(file.others(), all(&[("c", "models.config.Options"), ("d", "models.config.Options")]));
    let noted = ": a class that is not read: its 2 objects are described, and none was made";
    assert_eq!(file.notes(), [format!("models.config.Options{noted}")]);
    // Classes that are dictionaries by nature show their entries, too.
    for class in ["easydict\nEasyDict", "yacs.config\nCfgNode", "addict.addict\nDict"] {
        let file = open(&dictionary(class)).unwrap();
        let shown = class.replace('\n', ".");
        assert_eq!(file.others(), all(&[("c", &shown), ("c.a", "1"), ("d", &shown), ("d.a", "1")]));
        assert_eq!(file.notes().len(), 1);
        assert!(file.notes()[0].starts_with(&format!("{shown}: a class of settings: its 2 objects")), "{class}");
    }
}

#[test]
fn a_name_that_reaches_the_system_ends_the_reading_wherever_it_stands() {
    let one = tensor("ByteStorage", 1, 0, &[], &[]);
    for inside in [
        // As a value, in settings, as a base class, and as what another call is given.
        &b"cos\nsystem\n"[..],
        b"ceasydict\nEasyDict\n)\x81X\x01\0\0\0acos\nsystem\ns",
        b"ccopyreg\n_reconstructor\n(cmodels\nOptions\ncos\nsystem\nNtR",
        b"cfunctools\npartial\ncsubprocess\nPopen\n\x85R",
        b"cmodels\nOptions\n)\x81cbuiltins\ngetattr\nb",
    ] {
        let pickle = [b"\x80\x02}(X\x01\0\0\0w", &one[..], b"X\x01\0\0\0c", inside, b"u."].concat();
        let bytes = legacy_with(&pickle, 1, &[7]);
        assert!(refusal(&bytes).contains("expected only classes and functions that checkpoints need"), "{inside:?}");
        assert!(open_under(&bytes, Some("w")).is_err());
    }
}

#[test]
fn classes_without_end_are_counted() {
    let mut pickle = b"\x80\x02".to_vec();
    for number in 0..5000 {
        pickle.extend(format!("cmodels\nC{number}\n0").as_bytes());
    }
    pickle.extend(b"N.");
    let message = refusal(&legacy(&pickle));
    assert!(message.contains("expected at most 4096 classes that aren't known"), "{message}");
    let long = [b"\x80\x04X\x01\0\0\0mX\0\x08\0\0".to_vec(), vec![b'x'; 2048], b"\x93.".to_vec()].concat();
    assert!(refusal(&legacy(&long)).contains("expected a name of at most 1024 bytes, found a longer one"));
}
