use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::error::Result;

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field of wire type 2.
fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn score(value: f32) -> Vec<u8> {
    [varint(2 << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

fn piece(text: &[u8], value: f32, kind: u64) -> Vec<u8> {
    bytes(1, &[bytes(1, text), score(value), number(3, kind)].concat())
}

fn parse(bytes: &[u8]) -> Result<SentencePieceModel> {
    SentencePieceModel::parse(Path::new("tokenizer.model"), bytes)
}

fn refusal(bytes: &[u8]) -> String {
    parse(bytes).unwrap_err().to_string()
}

fn small() -> Vec<u8> {
    [
        piece(b"<unk>", 0.0, 2),
        piece("\u{2581}a".as_bytes(), -1.5, 1),
        bytes(1, &bytes(1, b"b")),
        bytes(2, &[number(3, 2), number(40, 0), bytes(45, b"<unk>")].concat()),
        bytes(3, &[bytes(1, b"identity"), bytes(2, &[0, 255]), number(3, 0), number(4, 0)].concat()),
    ]
    .concat()
}

#[test]
fn reads_pieces_and_settings() {
    let model = parse(&small()).unwrap();
    let piece = |text: &str, score, kind| Piece { text: text.to_owned(), score, kind, ..Piece::default() };
    assert_eq!(
        model.pieces,
        [
            piece("<unk>", 0.0, TokenKind::Unknown),
            piece("\u{2581}a", -1.5, TokenKind::Normal),
            piece("b", 0.0, TokenKind::Normal)
        ]
    );
    assert_eq!((model.model_type, model.add_dummy_prefix, model.remove_extra_whitespaces), (2, false, false));
    assert_eq!(model.precompiled_charsmap, [0, 255]);
}

#[test]
fn absent_settings_have_the_formats_defaults() {
    let model = parse(&piece(b"<unk>", 0.0, 2)).unwrap();
    assert_eq!((model.model_type, model.add_dummy_prefix, model.remove_extra_whitespaces), (1, true, true));
    assert!(model.precompiled_charsmap.is_empty());
}

#[test]
fn unknown_fields_of_every_wire_type_are_skipped() {
    let unknown = [number(99, u64::MAX), bytes(98, b"..."), [varint(97 << 3 | 1), vec![0; 8]].concat(), {
        [varint(96 << 3 | 5), vec![0; 4]].concat()
    }]
    .concat();
    let inside = bytes(1, &[bytes(1, b"x"), unknown.clone()].concat());
    let model = parse(&[unknown, small(), inside].concat()).unwrap();
    assert_eq!(model.pieces.len(), 4);
}

#[test]
fn a_model_cut_at_any_byte_is_an_error_or_a_shorter_model() {
    let whole = small();
    let complete = parse(&whole).unwrap();
    for end in 0..whole.len() {
        match parse(&whole[..end]) {
            Ok(model) => assert!(model != complete && complete.pieces.starts_with(&model.pieces), "{end}"),
            Err(error) => assert!(error.to_string().starts_with("tokenizer.model: "), "{error}"),
        }
    }
    // The cuts that leave no message are the ends of fields; all others name a place.
    assert!(refusal(&whole[..3]).contains("byte 2: expected 14 bytes, found 1 left in the message"));
}

#[test]
fn hostile_lengths_and_numbers_are_refused() {
    let cases: [(&[u8], &str); 6] = [
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "byte 11: expected 18446744073709551615 bytes, found 0 left"),
        (b"\x0a\xff\xff\xff\xff\x0f", "byte 6: expected 4294967295 bytes"),
        (b"\x0a\x7f\x0a", "byte 2: expected 127 bytes, found 1 left"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "byte 0: expected a number of at most 64 bits"),
        (b"\x0b", "byte 0: expected a protobuf field of wire type 0, 1, 2 or 5, found 3"),
        (b"", "pieces: expected one of type unknown, found 0"),
    ];
    for (bytes, expected) in cases {
        let message = refusal(bytes);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn lengths_inside_a_piece_end_with_the_piece() {
    // The piece has 3 bytes; its text claims 5, which the file would have.
    let message = refusal(&[b"\x0a\x03\x0a\x05a".as_slice(), &small()].concat());
    assert!(message.contains("byte 4: expected 5 bytes, found 1 left in the message"), "{message}");
}

#[test]
fn models_that_sentencepiece_refuses_are_refused() {
    let unknown = piece(b"<unk>", 0.0, 2);
    let cases = [
        (piece(b"a\xff", 0.0, 1), "piece 1: expected UTF-8 text"),
        (piece(b"", 0.0, 1), "piece 1: expected a text, found an empty one"),
        (piece(b"<unk>", 0.0, 1), "piece 1: expected a text of its own, found \"<unk>\""),
        (piece(b"<unk2>", 0.0, 2), "pieces: expected one of type unknown, found 2"),
        (piece(b"a", f32::NAN, 1), "piece 1: expected a finite score, found NaN"),
    ];
    for (second, expected) in cases {
        let message = refusal(&[unknown.clone(), second].concat());
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn with_all_bytes_nothing_is_unknown() {
    let bytes: Vec<u8> = (0..=255u8).flat_map(|byte| piece(format!("<0x{byte:02X}>").as_bytes(), 0.0, 6)).collect();
    assert_eq!(parse(&bytes).unwrap().pieces.len(), 256);
    assert!(parse(&bytes[..bytes.len() / 2]).is_err());
}

#[test]
fn fields_stand_as_the_wire_format_has_them() {
    let piece =
        |text: &str, score: f32, kind: TokenKind| Piece { text: text.to_owned(), score, kind, ..Piece::default() };
    let model = SentencePieceModel {
        model_type: BPE,
        pieces: vec![piece("<unk>", 0.0, TokenKind::Unknown), piece("a", -1.5, TokenKind::Normal)],
        byte_fallback: true,
        unk_id: Some(0),
        bos_id: None,
        eos_id: None,
        normalizer: "identity".to_owned(),
        remove_extra_whitespaces: false,
        ..SentencePieceModel::default()
    };
    let mut expected = vec![0x0a, 14, 0x0a, 5];
    expected.extend(b"<unk>");
    expected.extend([0x15, 0, 0, 0, 0, 0x18, 2]);
    expected.extend([0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0xbf]);
    let minus_one = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    expected.extend([0x12, 54, 0x18, 2, 0x20, 2, 0x98, 0x02, 1, 0xc0, 0x02, 0]);
    for field in [0xc8, 0xd0, 0xd8] {
        expected.extend([field, 0x02]);
        expected.extend(minus_one);
    }
    expected.extend([0xea, 0x02, 5]);
    expected.extend(b"<unk>");
    expected.extend([0x1a, 18, 0x0a, 8]);
    expected.extend(b"identity");
    expected.extend([0x12, 0, 0x18, 1, 0x20, 0, 0x28, 1]);
    assert_eq!(model.to_bytes(), expected);
}

/// Fields of every wire type, with numbers that the format doesn't have.
fn other_fields() -> impl Strategy<Value = Vec<u8>> {
    let field = (1000u64..2000, any::<u64>(), 0..4).prop_map(|(field, value, wire)| match wire {
        0 => number(field, value),
        1 => [varint(field << 3 | 1), value.to_le_bytes().to_vec()].concat(),
        2 => bytes(field, &value.to_le_bytes()),
        _ => [varint(field << 3 | 5), (value as u32).to_le_bytes().to_vec()].concat(),
    });
    proptest::collection::vec(field, 0..3).prop_map(|fields| fields.concat())
}

/// Models of every setting, with one unknown piece at the end.
fn models() -> impl Strategy<Value = SentencePieceModel> {
    let kinds = [TokenKind::Normal, TokenKind::Control, TokenKind::UserDefined, TokenKind::Unused, TokenKind::Byte];
    let piece = (-100f32..0.0, proptest::sample::select(kinds.to_vec()), other_fields());
    let pieces = proptest::collection::hash_map("[a-z\u{2581}]{1,8}", piece, 0..10);
    let id = || proptest::option::of(0u32..12);
    let flags = proptest::array::uniform4(any::<bool>());
    let other = (other_fields(), other_fields(), other_fields());
    let charsmap = proptest::collection::vec(any::<u8>(), 0..8);
    (pieces, (0u64..6, id(), id(), id(), id()), flags, ("[a-z_]{0,8}", charsmap), other).prop_map(
        |(pieces, (model_type, unk_id, bos_id, eos_id, pad_id), flags, (normalizer, precompiled_charsmap), other)| {
            let [byte_fallback, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces] = flags;
            let unknown = Piece { text: "<unk>".to_owned(), kind: TokenKind::Unknown, ..Piece::default() };
            let pieces = pieces
                .into_iter()
                .map(|(text, (score, kind, other_fields))| Piece { text, score, kind, other_fields })
                .chain([unknown])
                .collect();
            let other_fields = OtherFields { model: other.0, trainer_spec: other.1, normalizer_spec: other.2 };
            SentencePieceModel {
                pieces,
                model_type,
                byte_fallback,
                unk_id,
                bos_id,
                eos_id,
                pad_id,
                normalizer,
                add_dummy_prefix,
                remove_extra_whitespaces,
                escape_whitespaces,
                precompiled_charsmap,
                other_fields,
            }
        },
    )
}

#[test]
fn a_kind_without_a_name_changes_no_kind() {
    for (first, second) in [(0, 2), (2, 0), (2, 99)] {
        let fields = [bytes(1, b"<unk>"), number(3, first), number(3, second)].concat();
        let model = parse(&bytes(1, &fields)).unwrap();
        assert_eq!(model.pieces[0].kind, TokenKind::Unknown);
        assert_eq!(parse(&model.to_bytes()).unwrap(), model);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn any_change_of_a_byte_is_read_or_refused(place in 0usize..90, byte in any::<u8>()) {
        let mut bytes = small();
        let place = place % bytes.len();
        bytes[place] = byte;
        if let Err(error) = parse(&bytes) {
            prop_assert!(error.to_string().starts_with("tokenizer.model: "));
        }
    }

    #[test]
    fn pieces_come_back(pieces in proptest::collection::hash_map("[a-z\u{2581}]{1,8}", (-100f32..0.0, 3u64..7), 0..20)) {
        let mut bytes = piece(b"<unk>", 0.0, 2);
        for (text, (score, kind)) in &pieces {
            bytes.extend(piece(text.as_bytes(), *score, *kind));
        }
        let model = parse(&bytes).unwrap();
        prop_assert_eq!(model.pieces.len(), pieces.len() + 1);
        for (read, (text, (score, kind))) in model.pieces[1..].iter().zip(&pieces) {
            prop_assert_eq!((&read.text, read.score, read.kind as u64), (text, *score, *kind));
        }
    }

    #[test]
    fn a_model_that_is_written_is_read_as_the_same_model(model in models()) {
        prop_assert_eq!(parse(&model.to_bytes()).unwrap(), model);
    }

    #[test]
    fn what_is_read_is_written_without_a_loss(place in 0usize..90, byte in any::<u8>()) {
        let mut bytes = small();
        let place = place % bytes.len();
        bytes[place] = byte;
        if let Ok(model) = parse(&bytes) {
            prop_assert_eq!(parse(&model.to_bytes()).unwrap(), model);
        }
    }
}
