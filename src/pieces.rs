//! A file whose bytes lie in several files, read as one.
//!
//! The store keeps a large file of tensors as an object per tensor and a recipe, `objects/ab/cdef….parts`, which lists
//! them in order. Whoever is given the path of such a file may be given the path of a recipe: [`open`] reads either.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use fs_err::File;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::fs;

/// How the name of a recipe ends.
pub const SUFFIX: &str = ".parts";
/// Bytes of a recipe at most: room for 400,000 pieces.
const LONGEST: u64 = 32 << 20;

/// Which objects a file is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Bytes in all.
    pub size: u64,
    /// The digest and the size of each piece, in order.
    pub parts: Vec<(Digest, u64)>,
}

impl Recipe {
    /// Whether a path is that of a recipe, by its name.
    pub fn is_at(path: &Path) -> bool {
        path.as_os_str().as_encoded_bytes().ends_with(SUFFIX.as_bytes())
    }

    /// Reads one from bytes; `None` if it is none, or its sizes do not add up.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let recipe: Self = serde_json::from_slice(bytes).ok()?;
        let sum = recipe.parts.iter().try_fold(0u64, |sum, (_, size)| sum.checked_add(*size));
        (sum == Some(recipe.size)).then_some(recipe)
    }

    /// Reads a recipe. One that is none, or whose sizes do not add up, is [`io::ErrorKind::InvalidData`].
    pub fn read(path: &Path) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("`{}` {what}", path.display()));
        let bytes = fs::read(path, LONGEST).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => wrong("is too long for a list of parts"),
            _ => error,
        })?;
        Self::parse(&bytes).ok_or_else(|| wrong("is no list of parts that add up to its size"))
    }

    /// Where the pieces are, by the place of the recipe.
    fn pieces(&self, recipe: &Path) -> Vec<(PathBuf, u64)> {
        let objects = recipe.parent().and_then(Path::parent).unwrap_or(Path::new(""));
        let place = |digest: &Digest| {
            let hex = digest.to_string();
            let (shard, rest) = hex.split_at(2);
            objects.join(shard).join(rest)
        };
        self.parts.iter().map(|(digest, size)| (place(digest), *size)).collect()
    }
}

/// An open file, whole or in pieces. One piece is open at a time.
#[derive(Debug)]
pub struct Pieces {
    /// Each piece, where it begins and where it ends.
    files: Vec<(PathBuf, u64, u64)>,
    at: u64,
    open: Option<(usize, File)>,
}

/// Opens a file, or what a recipe lists.
pub fn open(path: &Path) -> io::Result<Pieces> {
    if !Recipe::is_at(path) {
        let file = fs::open(path)?;
        let size = file.metadata()?.len();
        return Ok(Pieces { files: vec![(path.to_owned(), 0, size)], at: 0, open: Some((0, file)) });
    }
    let mut end = 0;
    let placed = |(path, size): (PathBuf, u64)| {
        let start = end;
        end += size;
        (path, start, end)
    };
    let pieces = Recipe::read(path)?.pieces(path).into_iter().map(placed).collect();
    Ok(Pieces { files: pieces, at: 0, open: None })
}

impl Pieces {
    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.files.last().map_or(0, |(_, _, end)| *end)
    }

    /// The files that the bytes lie in, each with its size, in order.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&Path, u64)> {
        self.files.iter().map(|(path, start, end)| (path.as_path(), end - start))
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let index = self.files.partition_point(|(_, _, end)| *end <= self.at);
        let Some((path, start, end)) = self.files.get(index) else { return Ok(0) };
        if self.open.as_ref().is_none_or(|(open, _)| *open != index) {
            let mut file = fs::open(path)?;
            file.seek(SeekFrom::Start(self.at - start))?;
            self.open = Some((index, file));
        }
        let Some((_, file)) = &mut self.open else { return Ok(0) };
        let room = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = file.read(&mut buffer[..room])?;
        if read == 0 && room > 0 {
            let what = format!("`{}` is shorter than it should be", path.display());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Pieces {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(offset) => self.size().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        self.at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a place before the beginning"))?;
        // Within a piece that is open the next read goes on from here.
        if let Some((index, file)) = &mut self.open
            && let Some((_, start, end)) = self.files.get(*index)
            && (*start..*end).contains(&self.at)
        {
            file.seek(SeekFrom::Start(self.at - start))?;
        } else {
            self.open = None;
        }
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts pieces and their recipe into a directory as a store has them.
    fn store(directory: &Path, pieces: &[&[u8]]) -> PathBuf {
        let parts: Vec<_> = pieces.iter().map(|bytes| (Digest::of(bytes), bytes.len() as u64)).collect();
        let recipe = Recipe { size: parts.iter().map(|(_, size)| size).sum(), parts };
        let path = directory.join("ab").join(format!("cdef{SUFFIX}"));
        fs_err::create_dir_all(directory.join("ab")).unwrap();
        for ((place, _), bytes) in recipe.pieces(&path).iter().zip(pieces) {
            fs_err::create_dir_all(place.parent().unwrap()).unwrap();
            fs_err::write(place, bytes).unwrap();
        }
        fs_err::write(&path, serde_json::to_vec(&recipe).unwrap()).unwrap();
        path
    }

    #[test]
    fn pieces_read_as_one_file_from_everywhere() {
        let directory = tempfile::tempdir().unwrap();
        let recipe = store(directory.path(), &[b"abc", b"d", b"", b"efgh"]);
        let whole = directory.path().join("whole");
        fs_err::write(&whole, "abcdefgh").unwrap();
        for path in [&recipe, &whole] {
            let mut file = open(path).unwrap();
            assert_eq!(file.size(), 8);
            for from in 0..=9u64 {
                for length in 0..=8u64.saturating_sub(from) {
                    file.seek(SeekFrom::Start(from)).unwrap();
                    let mut text = vec![0; length as usize];
                    file.read_exact(&mut text).unwrap();
                    assert_eq!(text, b"abcdefgh"[from.min(8) as usize..][..length as usize]);
                }
            }
            assert_eq!(file.read(&mut [0; 4]).unwrap(), 0, "at the end");
            file.seek(SeekFrom::End(-2)).unwrap();
            assert_eq!(file.seek(SeekFrom::Current(-3)).unwrap(), 3);
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "defgh");
            assert!(file.seek(SeekFrom::End(-9)).is_err());
        }
    }

    #[test]
    fn what_is_no_recipe_or_lacks_a_piece_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let recipe = store(directory.path(), &[b"abc", b"defgh"]);
        let piece = open(&recipe).unwrap().files().nth(1).map(|(path, _)| path.to_owned()).unwrap();
        fs_err::write(&piece, "de").unwrap();
        let error = open(&recipe).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        fs_err::remove_file(&piece).unwrap();
        let error = open(&recipe).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let id = Digest::of(b"abc");
        let big = u64::MAX;
        for text in [
            "{".to_owned(),
            "[]".to_owned(),
            r#"{"size":4,"parts":[["../../../etc/passwd",4]]}"#.to_owned(),
            format!(r#"{{"size":4,"parts":[["{id}",3]]}}"#),
            format!(r#"{{"size":1,"parts":[["{id}",{big}],["{id}",2]]}}"#),
            format!(r#"{{"size":3,"parts":[["{id}",3]],"more":1}}"#),
        ] {
            fs_err::write(&recipe, &text).unwrap();
            assert_eq!(open(&recipe).unwrap_err().kind(), io::ErrorKind::InvalidData, "{text}");
        }
    }
}
