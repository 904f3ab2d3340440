//! What goes over a connection: a head of 17 bytes (kind, operation, length), and so many bytes.

use std::io::{self, Read, Write};

/// Bytes of a head.
const HEAD: usize = 17;
/// Bytes that are read or written at once: between two of them a rank can be seen to be there.
pub(super) const BLOCK: usize = 1 << 18;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something of an operation.
    Data = 1,
    /// The sender is there.
    Beat = 2,
    /// The sender cannot go on: JSON of the rank that is at fault and why.
    Abort = 3,
    /// The sender has done its part and goes.
    Bye = 4,
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// Number of the operation.
    pub(super) operation: u64,
    /// Bytes that follow.
    pub(super) length: u64,
}

impl Head {
    /// Writes it.
    pub(super) fn write(self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = [0; HEAD];
        bytes[0] = self.kind as u8;
        bytes[1..9].copy_from_slice(&self.operation.to_le_bytes());
        bytes[9..].copy_from_slice(&self.length.to_le_bytes());
        to.write_all(&bytes)
    }

    /// Reads one; `None` where the connection ended before it.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEAD];
        let mut filled = 0;
        while filled < HEAD {
            match from.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let kind = match bytes[0] {
            1 => Kind::Data,
            2 => Kind::Beat,
            3 => Kind::Abort,
            4 => Kind::Bye,
            other => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of kind {other}"))),
        };
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        Ok(Some(Self { kind, operation: number(1), length: number(9) }))
    }
}

/// Writes numbers, in blocks that need little memory.
pub(super) fn write_numbers(numbers: &[f32], to: &mut impl Write) -> io::Result<()> {
    let mut block = Vec::with_capacity(BLOCK.min(size_of_val(numbers)));
    for numbers in numbers.chunks(BLOCK / size_of::<f32>()) {
        block.clear();
        block.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        to.write_all(&block)?;
    }
    Ok(())
}

/// Numbers from their bytes; what is left over at the end is left out.
pub(super) fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_were_written_and_nothing_else_is_one() {
        let head = Head { kind: Kind::Abort, operation: 1 << 40, length: 3 };
        let mut bytes = Vec::new();
        head.write(&mut bytes).expect("writes");
        assert_eq!(Head::read(&mut bytes.as_slice()).expect("reads"), Some(head));
        assert_eq!(Head::read(&mut [].as_slice()).expect("an end"), None);
        assert_eq!(Head::read(&mut &bytes[..9]).expect_err("half").kind(), io::ErrorKind::UnexpectedEof);
        bytes[0] = 77;
        assert_eq!(Head::read(&mut bytes.as_slice()).expect_err("no kind").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn numbers_keep_their_bits() {
        let wanted = [0.0, -0.0, f32::MIN_POSITIVE, f32::NAN, 1.5];
        let mut bytes = Vec::new();
        write_numbers(&wanted, &mut bytes).expect("writes");
        let found: Vec<u32> = numbers(&bytes).iter().map(|number| number.to_bits()).collect();
        assert_eq!(found, wanted.map(f32::to_bits));
    }
}
