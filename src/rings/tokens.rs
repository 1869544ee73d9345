//! Tokens: drawn at random so that none is taken twice, and kept in a file if the configuration names one.

use std::{collections::BTreeSet, fs, io, path::Path};

use rand_chacha::{ChaCha8Rng, rand_core::Rng as _};
use serde::{Deserialize, Serialize};

/// The file's contents, as Tempo writes them.
#[derive(Serialize, Deserialize)]
struct File {
    tokens: Vec<u32>,
}

/// `own` without those that others have, brought to `count` with new ones; ascending.
pub(super) fn complete(own: &[u32], others: &BTreeSet<u32>, count: usize, random: &mut ChaCha8Rng) -> Vec<u32> {
    let mut tokens: BTreeSet<u32> = own.iter().copied().filter(|token| !others.contains(token)).take(count).collect();
    while tokens.len() < count {
        let token = random.next_u32();
        if !others.contains(&token) {
            tokens.insert(token);
        }
    }
    tokens.into_iter().collect()
}

/// Reads a file; none if there is none yet.
pub(super) fn load(path: &Path) -> io::Result<Option<Vec<u32>>> {
    match fs::read(path) {
        Ok(bytes) => {
            let File { mut tokens } = serde_json::from_slice(&bytes)?;
            tokens.sort_unstable();
            tokens.dedup();
            Ok(Some(tokens))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file, whole or not at all.
pub(super) fn store(path: &Path, tokens: &[u32]) -> io::Result<()> {
    let bytes = serde_json::to_vec(&File { tokens: tokens.to_vec() })?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng as _;

    use super::*;

    #[test]
    fn tokens_are_kept_dropped_and_drawn() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let first = complete(&[], &BTreeSet::new(), 128, &mut random);
        assert_eq!(first.len(), 128);
        assert!(first.is_sorted());
        assert_eq!(complete(&first, &BTreeSet::new(), 128, &mut random), first, "nothing to do");
        let taken: BTreeSet<u32> = first[..3].iter().copied().collect();
        let second = complete(&first, &taken, 130, &mut random);
        assert_eq!(second.len(), 130);
        assert!(second.iter().all(|token| !taken.contains(token)));
        assert_eq!(second.iter().filter(|token| first.contains(token)).count(), 125);
        assert_eq!(complete(&first, &BTreeSet::new(), 5, &mut random).len(), 5);
    }

    #[test]
    fn a_file_of_tokens() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("tokens.json");
        assert_eq!(load(&path).expect("no file is no error"), None);
        store(&path, &[3, 5]).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("text"), "{\"tokens\":[3,5]}");
        assert_eq!(load(&path).expect("read"), Some(vec![3, 5]));
        fs::write(&path, "{").expect("written");
        assert!(load(&path).is_err());
    }
}
