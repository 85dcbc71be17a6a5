//! Tests block types bit by bit: decoding compared with gguf-py and ggml, encoding with ggml.
//!
//! `ATOMBANK_QUANT_CASES=FOLDER` uses a folder made elsewhere by `fixtures/quant/make_quant.py`,
//! and `ATOMBANK_ENCODE_CASES=FOLDER` one made by `fixtures/quant/encode/make_encode.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use atombank::dtype::DType;
use atombank::kernel::Kernel;
use atombank::quant::{can_decode, can_encode, decode, encode, encode_row, has_non_finite, needs_importance};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Expected {
    sha256: String,
    /// Eight hexadecimal digits of the hash of each block's values.
    blocks: String,
}

fn folder() -> PathBuf {
    match std::env::var_os("ATOMBANK_QUANT_CASES") {
        Some(folder) => folder.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/quant"),
    }
}

fn cases() -> BTreeMap<String, Expected> {
    serde_json::from_slice(&std::fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

fn blocks_of(dtype: DType) -> Vec<u8> {
    std::fs::read(folder().join(format!("{dtype}.bin"))).unwrap()
}

/// All block types with a number in GGUF.
fn block_types() -> Vec<DType> {
    (0..256).filter_map(DType::from_ggml_id).filter(|dtype| !dtype.is_plain()).collect()
}

fn hex(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    hex_of_bytes(&bytes)
}

fn hex_of_bytes(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Offsets of the f16 scales in a block.
fn half_scales(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q8_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
        DType::Q8_K | DType::IQ1_M | DType::MXFP4 | DType::NVFP4 => &[],
        _ => &[0],
    }
}

#[test]
fn every_block_type_of_gguf_can_be_decoded_and_has_a_case() {
    let cases = cases();
    assert_eq!(block_types().len(), cases.len());
    for dtype in block_types() {
        assert!(can_decode(dtype), "{dtype}");
        assert!(cases.contains_key(dtype.name()), "{dtype} has no case");
    }
}

#[test]
fn blocks_decode_to_the_bits_of_the_reference() {
    let cases = cases();
    for dtype in block_types() {
        let expected = &cases[dtype.name()];
        let bytes = blocks_of(dtype);
        let count = bytes.len() / dtype.block_bytes();
        assert_eq!(expected.blocks.len(), 8 * count, "{dtype}: blocks");
        let mut values = vec![f32::NAN; count * dtype.block_elems()];
        decode(dtype, &bytes, &mut values);
        for (i, block) in values.chunks_exact(dtype.block_elems()).enumerate() {
            let digits = &expected.blocks[8 * i..8 * i + 8];
            assert_eq!(&hex(block)[..8], digits, "{dtype}: block {i} decodes to {:?}...", &block[..4]);
        }
        assert_eq!(hex(&values), expected.sha256, "{dtype}");
        assert!(!has_non_finite(dtype, &bytes), "{dtype}: these blocks are finite");
    }
}

#[test]
fn any_run_of_blocks_decodes_by_itself() {
    for dtype in block_types() {
        let (bytes, elems) = (blocks_of(dtype), dtype.block_elems());
        let mut all = vec![0.0; bytes.len() / dtype.block_bytes() * elems];
        decode(dtype, &bytes, &mut all);
        let mut two = vec![0.0; 2 * elems];
        decode(dtype, &bytes[3 * dtype.block_bytes()..5 * dtype.block_bytes()], &mut two);
        assert!(two.iter().zip(&all[3 * elems..]).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype}");
        decode(dtype, &[], &mut []);
    }
}

#[test]
fn a_scale_that_is_nan_or_infinite_is_found_in_every_block() {
    const NOT_FINITE: [u16; 3] = [0x7c00, 0xfc00, 0x7e01];
    for dtype in block_types() {
        let size = dtype.block_bytes();
        let good = &blocks_of(dtype)[..3 * size];
        for bad in NOT_FINITE {
            for at in half_scales(dtype) {
                let mut bytes = good.to_vec();
                bytes[2 * size + at..2 * size + at + 2].copy_from_slice(&bad.to_le_bytes());
                assert!(has_non_finite(dtype, &bytes), "{dtype}: {bad:#x} at {at}");
            }
        }
    }
}

#[test]
fn scales_that_are_not_one_half_are_looked_at_too() {
    // IQ1_M's f16 is in four nibbles, each the highest of a word.
    let mut iq1_m = [0; 56];
    for (byte, nibble) in [(49, 0x00), (51, 0x00), (53, 0xc0), (55, 0x70)] {
        iq1_m[byte] = nibble;
    }
    assert!(has_non_finite(DType::IQ1_M, &iq1_m), "0x7c00");
    iq1_m[53] = 0x80;
    assert!(!has_non_finite(DType::IQ1_M, &iq1_m), "0x7800");

    let q8_k = |d: f32, q: i8| {
        let mut block = [0; 292];
        block[..4].copy_from_slice(&d.to_le_bytes());
        block[100] = q as u8;
        block
    };
    assert!(has_non_finite(DType::Q8_K, &q8_k(f32::NAN, 0)));
    assert!(has_non_finite(DType::Q8_K, &q8_k(f32::INFINITY, 0)));
    assert!(has_non_finite(DType::Q8_K, &q8_k(f32::MAX, -128)), "the product is infinite");
    assert!(!has_non_finite(DType::Q8_K, &q8_k(f32::MAX, -1)));

    assert!(has_non_finite(DType::MXFP4, &[0xff; 17]), "NaN in E8M0");
    assert!(!has_non_finite(DType::NVFP4, &[0xff; 36]), "ggml takes every byte for a number");
}

/// ggml's result for the first rows: 16 hexadecimal digits of the hash of all blocks.
#[derive(Deserialize)]
struct Encoded {
    rows: usize,
    /// `None` if ggml doesn't encode the type without importance.
    without: Option<String>,
    with: String,
}

const ROW_LEN: usize = 512;

/// The inputs for the encoders, by their names in `fixtures/quant/encode/make_encode.py`.
struct Encoding {
    rows: Vec<f32>,
    /// Each row uses the next importance, starting again after the last.
    importance: Vec<f32>,
    expected: BTreeMap<String, Encoded>,
}

impl Encoding {
    fn read() -> Self {
        let folder = match std::env::var_os("ATOMBANK_ENCODE_CASES") {
            Some(folder) => PathBuf::from(folder),
            None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/quant/encode"),
        };
        Self {
            rows: floats(&folder.join("rows.bin")),
            importance: floats(&folder.join("importance.bin")),
            expected: serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap(),
        }
    }

    /// The blocks of the first `count` rows, one row at a time.
    fn blocks(&self, dtype: DType, count: usize, led: bool, kernel: Kernel) -> Vec<u8> {
        let row_bytes = ROW_LEN / dtype.block_elems() * dtype.block_bytes();
        let mut out = vec![0xaa; count * row_bytes];
        let importance = self.importance.chunks_exact(ROW_LEN).cycle();
        let rows = self.rows.chunks_exact(ROW_LEN).zip(importance).zip(out.chunks_exact_mut(row_bytes));
        for ((row, importance), out) in rows {
            encode_row(dtype, row, led.then_some(importance), out, kernel);
        }
        out
    }
}

#[test]
fn every_block_type_of_gguf_can_be_encoded_and_has_a_case() {
    let expected = Encoding::read().expected;
    assert_eq!(block_types().len(), expected.len());
    for dtype in block_types() {
        assert!(can_encode(dtype), "{dtype}");
        assert!(expected.contains_key(dtype.name()), "{dtype} has no case");
    }
}

#[test]
fn importance_is_needed_where_ggml_asks_for_it() {
    for (name, case) in Encoding::read().expected {
        let dtype = block_types().into_iter().find(|dtype| dtype.name() == name).unwrap();
        assert_eq!(needs_importance(dtype), case.without.is_none(), "{dtype}");
    }
}

#[test]
fn rows_encode_to_the_bits_of_ggml_with_every_kernel() {
    let encoding = Encoding::read();
    let mut wrong = Vec::new();
    for kernel in Kernel::NAMES.into_iter().filter_map(Kernel::named) {
        for dtype in block_types() {
            let case = &encoding.expected[dtype.name()];
            assert!(case.rows >= 32, "{dtype}: {} rows", case.rows);
            for (led, expected) in [(true, Some(&case.with)), (false, case.without.as_ref())] {
                let Some(expected) = expected else { continue };
                if hex_of_bytes(&encoding.blocks(dtype, case.rows, led, kernel))[..16] != *expected {
                    wrong.push(format!("{dtype}, {kernel:?}, importance {led}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn many_rows_encode_as_one_by_one() {
    let encoding = Encoding::read();
    for dtype in block_types() {
        let case = &encoding.expected[dtype.name()];
        let Some(expected) = &case.without else { continue };
        let rows = &encoding.rows[..case.rows * ROW_LEN];
        let mut out = vec![0xaa; rows.len() / dtype.block_elems() * dtype.block_bytes()];
        encode(dtype, rows, &mut out);
        assert_eq!(hex_of_bytes(&out)[..16], *expected, "{dtype}");
        encode(dtype, &[], &mut []);
    }
}
