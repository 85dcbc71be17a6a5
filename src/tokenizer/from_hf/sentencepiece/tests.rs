use proptest::prelude::*;

use super::*;

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
    let piece = |text: &str, score, kind| Piece { text: text.to_owned(), score, kind };
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
}
