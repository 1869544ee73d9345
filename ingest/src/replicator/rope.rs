//! A message that is a list of buffers: what several messages have in common is in memory once.

use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Reads as the buffers one behind the other. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rope {
    /// In reverse, so that those that were read can be dropped; none is empty.
    rest: Vec<Bytes>,
    remaining: usize,
}

impl Rope {
    pub(crate) fn new(chunks: impl IntoIterator<Item = Bytes>) -> Self {
        let mut rest: Vec<Bytes> = chunks.into_iter().filter(|chunk| !chunk.is_empty()).collect();
        rest.reverse();
        let remaining = rest.iter().map(Bytes::len).sum();
        Self { rest, remaining }
    }

    /// The same behind one more buffer.
    pub(crate) fn behind(mut self, first: Bytes) -> Self {
        self.remaining += first.len();
        self.rest.push(first);
        self
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.rest.last().map_or(&[], |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, chunk) in slices.iter_mut().zip(self.rest.iter().rev()) {
            *slice = IoSlice::new(chunk);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced beyond the end");
        self.remaining -= count;
        while let Some(chunk) = self.rest.last_mut() {
            if count < chunk.len() {
                chunk.advance(count);
                return;
            }
            count -= chunk.len();
            self.rest.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_as_one(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 0..6), steps in prop::collection::vec(1usize..7, 0..30)) {
            let whole = chunks.concat();
            let mut rope = Rope::new(chunks.into_iter().map(Bytes::from));
            let mut at = 0;
            for step in steps {
                prop_assert_eq!(rope.remaining(), whole.len() - at);
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = rope.chunks_vectored(&mut slices);
                let seen: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                prop_assert!(whole[at..].starts_with(&seen));
                prop_assert!(whole[at..].starts_with(rope.chunk()));
                prop_assert_eq!(rope.chunk().is_empty(), at == whole.len());
                let step = step.min(rope.remaining());
                rope.advance(step);
                at += step;
            }
            prop_assert_eq!(&rope.copy_to_bytes(rope.remaining())[..], &whole[at..]);
        }
    }
}
