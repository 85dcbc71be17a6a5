//! Event files, which TensorBoard shows: records of TFRecord, each a protobuf message `Event` with named numbers.
//!
//! Reference: tensorflow `core/lib/io/record_writer.cc` (framing and masked checksums), `core/util/event.proto` and
//! `core/framework/summary.proto` (fields).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{IoContext, Result};

/// The version of event files that says what a restart means: events of the same and of later steps before it don't count.
const VERSION: &str = "brain.Event:2";

/// Numbers of fields of `Event`, `Summary`, `Summary.Value` and `SessionLog`.
mod field {
    pub(super) const WALL_TIME: u64 = 1;
    pub(super) const STEP: u64 = 2;
    pub(super) const FILE_VERSION: u64 = 3;
    pub(super) const SUMMARY: u64 = 5;
    pub(super) const SESSION_LOG: u64 = 7;
    pub(super) const VALUE: u64 = 1;
    pub(super) const TAG: u64 = 1;
    pub(super) const SIMPLE_VALUE: u64 = 2;
    pub(super) const STATUS: u64 = 1;
}

/// The status of a session that starts.
const START: u64 = 1;

/// An event file that is being written.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Makes a new file in `folder` for a run that has done `done` steps.
    pub(super) fn create(folder: &Path, done: usize) -> Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // TensorBoard reads the files of a folder by their names' order.
        let name = format!(
            "events.out.tfevents.{:010}.{:09}.atombank.{}",
            since.as_secs(),
            since.subsec_nanos(),
            std::process::id()
        );
        let path = folder.join(name);
        let file = File::create_new(&path).at(&path, "create")?;
        let mut events = Self { path, file };
        let mut version = Message::default();
        version.double(field::WALL_TIME, seconds());
        version.bytes(field::FILE_VERSION, VERSION.as_bytes());
        events.record(&version)?;
        let mut session = Message::default();
        session.varint(field::STATUS, START);
        let mut start = Message::of_step(done + 1);
        start.bytes(field::SESSION_LOG, &session.0);
        events.record(&start)?;
        Ok(events)
    }

    /// Writes the numbers of a step by their names.
    pub(super) fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut one = Message::default();
            one.bytes(field::TAG, tag.as_bytes());
            one.float(field::SIMPLE_VALUE, *value as f32);
            summary.bytes(field::VALUE, &one.0);
        }
        let mut event = Message::of_step(step);
        event.bytes(field::SUMMARY, &summary.0);
        self.record(&event)
    }

    /// A record: the length, its checksum, the message, its checksum.
    fn record(&mut self, message: &Message) -> Result<()> {
        let length = (message.0.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length).to_le_bytes());
        record.extend(&message.0);
        record.extend(masked(&message.0).to_le_bytes());
        self.file.write_all(&record).at(&self.path, "write")
    }
}

/// The checksum of TFRecord: CRC-32C, rotated and shifted, so that checksums of data with checksums stay good ones.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The time since 1970 in seconds.
fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A protobuf message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// An event of now, at a step.
    fn of_step(step: usize) -> Self {
        let mut event = Self::default();
        event.double(field::WALL_TIME, seconds());
        event.varint(field::STEP, step as u64);
        event
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_tensorflow() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked(&[0; 32]), 0x8a91_36aau32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_file_is_a_chain_of_records() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path(), 4).unwrap();
        events.scalars(300, &[("loss", 0.5), ("eval_loss", 2.0)]).unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        let (mut at, mut messages) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            messages.push(&bytes[at + 12..at + 12 + length]);
            at += 16 + length;
        }
        assert_eq!(messages.len(), 3);
        assert_eq!(&messages[0][9..], [&[3 << 3 | 2, 13], VERSION.as_bytes()].concat());
        assert_eq!(&messages[1][9..], [2 << 3, 5, 7 << 3 | 2, 2, 1 << 3, 1]);
        // Step 300 is two bytes of seven bits each.
        assert_eq!(&messages[2][9..12], [2 << 3, 0xac, 0x02]);
        let value = [&[1 << 3 | 2, 4], &b"loss"[..], &[2 << 3 | 5], &0.5f32.to_le_bytes()].concat();
        assert_eq!(&messages[2][14..16], [1 << 3 | 2, value.len() as u8]);
        assert_eq!(&messages[2][16..16 + value.len()], value);
    }
}
