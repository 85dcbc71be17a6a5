//! The zip container: reads a directory strictly, and lays out archives as torch.save does.
//!
//! Reference: PKWARE APPNOTE.TXT 6.3 (sections in comments), and the output of torch's own writer
//! (miniz in `caffe2/serialize/inline_container.cc`).
//!
//! Two readers may see different archives in the same zip: if names occur twice, local headers
//! differ from the directory, or entries share bytes. All of these are refused here, which is why
//! no general zip library is used.

mod reader;
mod writer;

pub(super) use reader::{Entry, Sums, read_directory, read_sums};
#[cfg(feature = "hub")]
pub(super) use reader::{Place, read_places};
pub(super) use writer::ZipLayout;

/// 4.3.7: the signature of an entry's local header.
const LOCAL: u32 = 0x0403_4b50;
/// 4.3.12: the signature of an entry in the directory.
const CENTRAL: u32 = 0x0201_4b50;
/// 4.3.14: the signature of the end of a directory with 64-bit numbers.
const END_64: u32 = 0x0606_4b50;
/// 4.3.15: the signature of the locator, which points to it.
const LOCATOR_64: u32 = 0x0706_4b50;
/// 4.3.16: the signature of the end of the directory.
const END: u32 = 0x0605_4b50;
/// 4.5.3: the extra field with 64-bit numbers.
const EXTRA_64: u16 = 1;
/// A 32-bit number that means that the real number is in a 64-bit field.
const FULL: u32 = u32::MAX;
/// 4.4.4, bit 11: names are UTF-8.
const UTF8: u16 = 1 << 11;
/// 4.4.4, bit 3: checksum and sizes follow the data.
const DESCRIPTOR: u16 = 1 << 3;
/// 4.3.9.3: the signature that a descriptor may begin with.
const DESCRIPTOR_MARK: u32 = 0x0807_4b50;
/// 4.4.4, bits 0, 6 and 13: the entry is encrypted.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
