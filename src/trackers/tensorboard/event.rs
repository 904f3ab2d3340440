//! TensorBoard's event files: records with checksums (TensorFlow's `record_writer.h`), each a protocol buffer message
//! (`event.proto`, `summary.proto`). What of the messages is needed is written by hand.

/// Field numbers of the messages, as the `.proto` files give them.
mod field {
    pub(super) const EVENT_WALL_TIME: u32 = 1;
    pub(super) const EVENT_STEP: u32 = 2;
    pub(super) const EVENT_FILE_VERSION: u32 = 3;
    pub(super) const EVENT_SUMMARY: u32 = 5;
    pub(super) const EVENT_SESSION_LOG: u32 = 7;
    pub(super) const SESSION_LOG_STATUS: u32 = 1;
    pub(super) const SUMMARY_VALUE: u32 = 1;
    pub(super) const VALUE_TAG: u32 = 1;
    pub(super) const VALUE_SIMPLE: u32 = 2;
    pub(super) const VALUE_TENSOR: u32 = 8;
    pub(super) const VALUE_METADATA: u32 = 9;
    pub(super) const METADATA_PLUGIN: u32 = 1;
    pub(super) const PLUGIN_NAME: u32 = 1;
    pub(super) const TENSOR_TYPE: u32 = 1;
    pub(super) const TENSOR_SHAPE: u32 = 2;
    pub(super) const TENSOR_STRING: u32 = 8;
    pub(super) const SHAPE_DIMENSION: u32 = 2;
    pub(super) const DIMENSION_SIZE: u32 = 1;
}

/// `DT_STRING`.
const STRING: u64 = 7;
/// `SessionLog.START`.
const START: u64 = 1;

/// The record that a file begins with; `seconds` since 1970, as in all of these.
pub(super) fn version(seconds: f64) -> Vec<u8> {
    let mut event = begun(seconds, 0);
    bytes(&mut event, field::EVENT_FILE_VERSION, b"brain.Event:2");
    record(&event)
}

/// A record that says that a process starts at this step: what earlier files of the directory say of it and of later ones is void.
pub(super) fn start(seconds: f64, step: u64) -> Vec<u8> {
    let mut log = Vec::new();
    number(&mut log, field::SESSION_LOG_STATUS, START);
    let mut event = begun(seconds, step);
    bytes(&mut event, field::EVENT_SESSION_LOG, &log);
    record(&event)
}

/// A record of numbers by name.
pub(super) fn scalars<'a>(seconds: f64, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, number) in values {
        let mut value = Vec::new();
        bytes(&mut value, field::VALUE_TAG, tag.as_bytes());
        key(&mut value, field::VALUE_SIMPLE, 5);
        value.extend((number as f32).to_le_bytes());
        bytes(&mut summary, field::SUMMARY_VALUE, &value);
    }
    let mut event = begun(seconds, step);
    bytes(&mut event, field::EVENT_SUMMARY, &summary);
    record(&event)
}

/// A record of a text in Markdown.
pub(super) fn text(seconds: f64, tag: &str, markdown: &str) -> Vec<u8> {
    let (mut plugin, mut metadata) = (Vec::new(), Vec::new());
    bytes(&mut plugin, field::PLUGIN_NAME, b"text");
    bytes(&mut metadata, field::METADATA_PLUGIN, &plugin);
    let (mut dimension, mut shape, mut tensor) = (Vec::new(), Vec::new(), Vec::new());
    number(&mut dimension, field::DIMENSION_SIZE, 1);
    bytes(&mut shape, field::SHAPE_DIMENSION, &dimension);
    number(&mut tensor, field::TENSOR_TYPE, STRING);
    bytes(&mut tensor, field::TENSOR_SHAPE, &shape);
    bytes(&mut tensor, field::TENSOR_STRING, markdown.as_bytes());
    let (mut value, mut summary) = (Vec::new(), Vec::new());
    bytes(&mut value, field::VALUE_TAG, tag.as_bytes());
    bytes(&mut value, field::VALUE_TENSOR, &tensor);
    bytes(&mut value, field::VALUE_METADATA, &metadata);
    bytes(&mut summary, field::SUMMARY_VALUE, &value);
    let mut event = begun(seconds, 0);
    bytes(&mut event, field::EVENT_SUMMARY, &summary);
    record(&event)
}

/// An event with its time and step.
fn begun(seconds: f64, step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, field::EVENT_WALL_TIME, 1);
    event.extend(seconds.to_le_bytes());
    number(&mut event, field::EVENT_STEP, step);
    event
}

/// A field's number and the form that its value has: 0 a number, 1 eight bytes, 2 bytes by length, 5 four bytes.
fn key(message: &mut Vec<u8>, field: u32, form: u32) {
    varint(message, u64::from(field << 3 | form));
}

fn number(message: &mut Vec<u8>, field: u32, value: u64) {
    key(message, field, 0);
    varint(message, value);
}

fn bytes(message: &mut Vec<u8>, field: u32, value: &[u8]) {
    key(message, field, 2);
    varint(message, value.len() as u64);
    message.extend(value);
}

/// Seven bits a byte, the low ones first; the eighth says that there is more.
fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// A message with its length before it, and a checksum after each of the two.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(message.len() + 16);
    record.extend(length);
    record.extend(masked(&length).to_le_bytes());
    record.extend(message);
    record.extend(masked(message).to_le_bytes());
    record
}

/// CRC-32C, turned and shifted so that a checksum of data with checksums in it is none by chance.
fn masked(data: &[u8]) -> u32 {
    crc(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C: polynomial 0x1EDC6F41, bits reversed.
fn crc(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !data.iter().fold(u32::MAX, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0x82f6_3b78 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the check value of the catalogue of CRCs.
        assert_eq!(crc(b"123456789"), 0xe306_9283);
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_record_has_its_length_and_its_fields() {
        let record = scalars(1.0, 300, [("loss", 0.5)]);
        let length = u64::from_le_bytes(record[..8].try_into().unwrap()) as usize;
        assert_eq!(record.len(), length + 16);
        let message = &record[12..12 + length];
        let mut wanted = vec![0x09];
        wanted.extend(1f64.to_le_bytes());
        // step 300; a summary of 13 bytes: a value of 11: the tag, and the number.
        wanted.extend([0x10, 0xac, 0x02, 0x2a, 13, 0x0a, 11, 0x0a, 4]);
        wanted.extend(b"loss");
        wanted.push(0x15);
        wanted.extend(0.5f32.to_le_bytes());
        assert_eq!(message, wanted);
        assert_eq!(record[12 + length..], masked(message).to_le_bytes());
    }
}
