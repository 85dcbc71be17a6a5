//! Any bytes as a PyTorch file: opening and reading them gives values or one error, never a panic.

#![no_main]

use std::io::Write;

use atombank::formats::Source;
use atombank::formats::pytorch::PytorchFile;
use libfuzzer_sys::fuzz_target;

/// Tensors of more bytes are read by their last row only: repeated elements may make them large.
const WHOLE_BYTES: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("a temporary file takes what is written");
    for key in [None, Some("state_dict"), Some("a.b.0")] {
        let Ok(open) = PytorchFile::open(file.path(), key) else { continue };
        for (i, tensor) in open.tensors().iter().enumerate() {
            let size = tensor.dtype.bytes_of(tensor.elems() as u64, 1).expect("checked when opened");
            if size <= WHOLE_BYTES {
                assert_eq!(open.bytes(i).len() as u64, size);
            } else if tensor.rows() > 0 {
                open.rows(i, tensor.rows() - 1..tensor.rows());
            }
        }
    }
});
