//! The zip container: its directory read strictly, and laid out as torch.save does.
//!
//! Reference: PKWARE APPNOTE.TXT 6.3 (sections in comments), and what torch's own writer (miniz in
//! `caffe2/serialize/inline_container.cc`) makes of it.
//!
//! Two readers may see two archives in one zip: names that occur twice, local headers that differ
//! from the directory, entries that share bytes. Each of these is refused here, which is why the
//! directory is not read by a general zip library.

mod reader;
mod writer;

pub(super) use reader::{Entry, read_directory};
#[cfg(feature = "hub")]
pub(super) use reader::{Place, read_places};
pub(super) use writer::ZipLayout;

/// 4.3.7: starts an entry's header.
const LOCAL: u32 = 0x0403_4b50;
/// 4.3.12: starts an entry of the directory.
const CENTRAL: u32 = 0x0201_4b50;
/// 4.3.14: starts the end of a directory with 64-bit numbers.
const END_64: u32 = 0x0606_4b50;
/// 4.3.15: starts the pointer to it.
const LOCATOR_64: u32 = 0x0706_4b50;
/// 4.3.16: starts the end of the directory.
const END: u32 = 0x0605_4b50;
/// 4.5.3: the extra field with 64-bit numbers.
const EXTRA_64: u16 = 1;
/// A 32-bit number that says: the real number is in a 64-bit field.
const FULL: u32 = u32::MAX;
/// 4.4.4, bit 11: names are UTF-8.
const UTF8: u16 = 1 << 11;
/// 4.4.4, bit 3: sums and sizes follow the data.
const DESCRIPTOR: u16 = 1 << 3;
/// 4.4.4, bits 0, 6 and 13: encrypted in one way or another.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
