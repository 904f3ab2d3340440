//! The digests that the hub names files by: SHA-256 of large ones, git's blob digest of small ones.

use sha2::Digest as _;

/// A digest that is computed while a file arrives.
pub(super) enum Digest {
    Sha256(sha2::Sha256),
    Git(Sha1),
    /// The name is no digest; only the size can be checked.
    Unknown,
}

impl Digest {
    /// The one that a file of `size` bytes called `etag` is checked by.
    pub(super) fn of(etag: &str, size: u64) -> Self {
        let hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match etag.len() {
            64 if hex => Self::Sha256(sha2::Sha256::new()),
            40 if hex => {
                let mut digest = Sha1::new();
                digest.update(format!("blob {size}\0").as_bytes());
                Self::Git(digest)
            }
            _ => Self::Unknown,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(digest) => digest.update(bytes),
            Self::Git(digest) => digest.update(bytes),
            Self::Unknown => {}
        }
    }

    /// In hex; `None` where nothing can be said.
    pub(super) fn finish(self) -> Option<String> {
        match self {
            Self::Sha256(digest) => Some(hex(&digest.finalize())),
            Self::Git(digest) => Some(hex(&digest.finish())),
            Self::Unknown => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |four: u8| char::from_digit(four.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// SHA-1 (FIPS 180-4), which git names files by. It keeps accidents out, not attackers.
pub(super) struct Sha1 {
    state: [u32; 5],
    /// What does not fill a block yet.
    rest: Vec<u8>,
    length: u64,
}

const BLOCK: usize = 64;

impl Sha1 {
    fn new() -> Self {
        let state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
        Self { state, rest: Vec::with_capacity(2 * BLOCK), length: 0 }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.rest.len()));
            self.rest.extend_from_slice(now);
            bytes = later;
            if self.rest.len() == BLOCK {
                self.block();
            }
        }
    }

    fn block(&mut self) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(self.rest.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        for at in 16..80 {
            words[at] = (words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = self.state;
        for (at, word) in words.iter().enumerate() {
            let (mixed, constant) = match at / 20 {
                0 => (b & c | !b & d, 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(mixed).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (state, add) in self.state.iter_mut().zip([a, b, c, d, e]) {
            *state = state.wrapping_add(add);
        }
        self.rest.clear();
    }

    fn finish(mut self) -> Vec<u8> {
        let bits = self.length * 8;
        self.update(&[0x80]);
        while self.rest.len() != BLOCK - 8 {
            self.update(&[0]);
        }
        self.update(&bits.to_be_bytes());
        self.state.iter().flat_map(|word| word.to_be_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(etag_length: usize, parts: &[&[u8]]) -> String {
        let size = parts.iter().map(|part| part.len() as u64).sum();
        let mut digest = Digest::of(&"0".repeat(etag_length), size);
        for part in parts {
            digest.update(part);
        }
        digest.finish().expect("a digest")
    }

    #[test]
    fn digests_are_those_of_git_and_of_the_standard() {
        // `git hash-object`, and FIPS 180-4's examples.
        assert_eq!(digest(40, &[b""]), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(digest(40, &[b"hel", b"lo\n"]), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(digest(64, &[b"a", b"bc"]), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let mut sha1 = Sha1::new();
        sha1.update(&vec![b'a'; 1_000_000]);
        assert_eq!(sha1.finish()[..4], [0x34, 0xaa, 0x97, 0x3c]);
        assert!(Digest::of("W/abc", 3).finish().is_none());
    }
}
