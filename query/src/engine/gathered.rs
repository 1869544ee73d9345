//! Bounded sets of texts in groups: what tag queries gather.
//!
//! Texts are kept in the order in which they came, and which ones are kept when a bound is reached follows from that order. So gathering from
//! parts, and then from what was gathered from each of them, keeps the same texts as gathering from everything at once, wherever it was cut,
//! as long as known texts in a row are not bounded.

use std::{collections::HashSet, sync::Arc};

use crate::job::Bounds;

/// A bounded set of texts in groups.
#[derive(Debug)]
pub(super) struct Gathered {
    bounds: Bounds,
    groups: Vec<Group>,
    /// In the order in which they came, with the position of their group.
    found: Vec<(usize, Arc<str>)>,
    bytes: usize,
    stale: usize,
    full: bool,
}

#[derive(Debug)]
struct Group {
    name: &'static str,
    texts: HashSet<Arc<str>>,
}

impl Gathered {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, groups: Vec::new(), found: Vec::new(), bytes: 0, stale: 0, full: false }
    }

    /// Whether a bound is reached: nothing more is taken in.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// How many texts there are.
    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    pub(super) fn add(&mut self, group: &'static str, text: &str) {
        if self.full || text.is_empty() {
            return;
        }
        let reached = |limit: usize, count: usize| limit > 0 && count >= limit;
        let at = self.groups.iter().position(|known| known.name == group);
        if at.is_some_and(|at| self.groups[at].texts.contains(text)) {
            self.stale += 1;
            self.full = reached(self.bounds.max_stale, self.stale);
            return;
        }
        let bytes = text.len() + if self.bounds.count_group { group.len() } else { 0 };
        if self.bounds.max_bytes > 0 && self.bytes + bytes > self.bounds.max_bytes {
            self.full = true;
            return;
        }
        let at = at.unwrap_or_else(|| {
            self.groups.push(Group { name: group, texts: HashSet::new() });
            self.groups.len() - 1
        });
        let text: Arc<str> = text.into();
        self.groups[at].texts.insert(Arc::clone(&text));
        self.found.push((at, text));
        self.stale = 0;
        self.bytes += bytes;
        self.full = reached(self.bounds.max_per_group, self.groups[at].texts.len()) || reached(self.bounds.max_entries, self.found.len());
    }

    /// Takes in what was gathered from a part, which says whether it stopped there.
    pub(super) fn merge(&mut self, texts: &[(&'static str, String)], full: bool) {
        texts.iter().for_each(|(group, text)| self.add(group, text));
        self.full |= full;
    }

    /// The texts that came after the first `known`, with their groups, in the order in which they came.
    pub(super) fn since(&self, known: usize) -> Vec<(&'static str, String)> {
        self.found[known.min(self.found.len())..].iter().map(|(at, text)| (self.groups[*at].name, text.to_string())).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNBOUNDED: Bounds = Bounds { max_bytes: 0, max_per_group: 0, max_entries: 0, max_stale: 0, count_group: false };

    fn gather<'a>(bounds: Bounds, texts: impl IntoIterator<Item = (&'static str, &'a str)>) -> Gathered {
        let mut found = Gathered::new(bounds);
        texts.into_iter().for_each(|(group, text)| found.add(group, text));
        found
    }

    fn gathered(bounds: Bounds) -> Vec<(&'static str, String)> {
        gather(bounds, [("a", "one"), ("a", "two"), ("b", "one"), ("a", "one"), ("a", "one"), ("b", "three"), ("b", "")]).since(0)
    }

    proptest! {
        #[test]
        fn where_it_is_cut_does_not_matter(
            texts in prop::collection::vec((0usize..3, 0u32..12), 0..40),
            cuts in prop::collection::btree_set(0usize..40, 0..5),
            max_bytes in 0usize..20,
            max_per_group in 0usize..6,
            max_entries in 0usize..12,
            count_group in any::<bool>(),
        ) {
            let bounds = Bounds { max_bytes, max_per_group, max_entries, max_stale: 0, count_group };
            let texts: Vec<_> = texts.into_iter().map(|(group, text)| (["a", "bb", "ccc"][group], "x".repeat(text as usize % 5) + &text.to_string())).collect();
            let whole = gather(bounds, texts.iter().map(|(group, text)| (*group, text.as_str())));
            let mut parts = Gathered::new(bounds);
            let mut start = 0;
            for end in cuts.into_iter().filter(|cut| *cut < texts.len()).chain([texts.len()]) {
                let part = gather(bounds, texts[start..end].iter().map(|(group, text)| (*group, text.as_str())));
                parts.merge(&part.since(0), part.is_full());
                start = end;
            }
            prop_assert_eq!(parts.since(0), whole.since(0));
        }
    }

    #[test]
    fn answers_are_bounded() {
        let entry = |group, text: &str| (group, text.to_owned());
        let everything = [entry("a", "one"), entry("a", "two"), entry("b", "one"), entry("b", "three")];
        assert_eq!(gathered(UNBOUNDED), everything);
        assert_eq!(gathered(Bounds { max_entries: 2, ..UNBOUNDED }), everything[..2]);
        assert_eq!(gathered(Bounds { max_per_group: 1, ..UNBOUNDED }), everything[..1]);
        assert_eq!(gathered(Bounds { max_stale: 2, ..UNBOUNDED }), everything[..3]);
        assert_eq!(gathered(Bounds { max_bytes: 9, ..UNBOUNDED }), everything[..3]);
        assert_eq!(gathered(Bounds { max_bytes: 9, count_group: true, ..UNBOUNDED }), everything[..2]);
    }
}
