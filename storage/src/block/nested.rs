//! The nested set numbers by which TraceQL's structural operators compare spans (block-format.md §9).
//!
//! ```text
//!  root ─┬─ a ── b        one counter, depth first: left on entering, right on leaving
//!        └─ c             root 1/8  a 2/5  b 3/4  c 6/7     parent = left of the parent, -1 for roots
//! ```
//!
//! Spans that no root reaches (orphans, cycles) keep 0 everywhere, and so do all spans of a trace without roots or with an id that more
//! than two spans have.

/// What the numbering needs to know of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// First eight bytes of the span id, see [`key`].
    pub id: u64,
    /// The same of the parent's id; none for a root.
    pub parent: Option<u64>,
    /// OTLP's kind.
    pub kind: i32,
}

/// The numbers of a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nested {
    /// Where a depth-first walk enters it; 0 when no root reaches it.
    pub left: i32,
    /// Where the walk leaves it.
    pub right: i32,
    /// Left number of the parent; -1 for a root.
    pub parent: i32,
    /// Spans that have this one as their parent, reached or not.
    pub children: i32,
}

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const NONE: u32 = u32::MAX;

/// The first eight bytes of a span id, padded with zeros, in their order.
pub fn key(id: &[u8]) -> u64 {
    if let Some(id) = id.first_chunk::<8>() {
        return u64::from_be_bytes(*id);
    }
    let mut padded = [0; 8];
    padded[..id.len()].copy_from_slice(id);
    u64::from_be_bytes(padded)
}

/// Buffers of [`Numbering::number`], reused from trace to trace.
#[derive(Debug, Default)]
pub struct Numbering {
    by_id: Vec<(u64, u32)>,
    parents: Vec<u32>,
    first_child: Vec<u32>,
    next_sibling: Vec<u32>,
}

impl Numbering {
    /// Numbers the spans of one trace, given in row order. `out` gets one entry per span.
    pub fn number(&mut self, nodes: &[Node], out: &mut Vec<Nested>) {
        out.clear();
        out.resize(nodes.len(), Nested::default());
        self.by_id.clear();
        self.by_id.extend(nodes.iter().zip(0..).map(|(node, index)| (node.id, index)));
        self.by_id.sort_unstable();
        if self.by_id.windows(3).any(|three| three[0].0 == three[2].0) || nodes.iter().all(|node| node.parent.is_some()) {
            return;
        }
        self.parents.clear();
        self.parents.extend(nodes.iter().map(|node| find_parent(&self.by_id, nodes, node)));
        self.first_child.clear();
        self.first_child.resize(nodes.len(), NONE);
        self.next_sibling.clear();
        self.next_sibling.resize(nodes.len(), NONE);
        for index in (0..nodes.len()).rev() {
            let parent = self.parents[index];
            if parent != NONE {
                self.next_sibling[index] = self.first_child[parent as usize];
                self.first_child[parent as usize] = index as u32;
                out[parent as usize].children += 1;
            }
        }
        let mut counter = 0;
        let mut next = || {
            counter += 1;
            counter
        };
        for root in (0..nodes.len()).filter(|&index| nodes[index].parent.is_none()) {
            out[root].parent = -1;
            let mut at = root;
            out[at].left = next();
            loop {
                let child = self.first_child[at];
                if child != NONE {
                    out[child as usize].parent = out[at].left;
                    at = child as usize;
                    out[at].left = next();
                    continue;
                }
                // Nothing below: leave spans until one has a sibling.
                loop {
                    out[at].right = next();
                    if at == root {
                        break;
                    }
                    let sibling = self.next_sibling[at];
                    let parent = self.parents[at] as usize;
                    if sibling != NONE {
                        at = sibling as usize;
                        out[at].parent = out[parent].left;
                        out[at].left = next();
                        break;
                    }
                    at = parent;
                }
                if at == root {
                    break;
                }
            }
        }
    }
}

fn find_parent(by_id: &[(u64, u32)], nodes: &[Node], node: &Node) -> u32 {
    let Some(parent) = node.parent else { return NONE };
    let at = by_id.partition_point(|&(id, _)| id < parent);
    let mut candidates = by_id[at..].iter().take_while(|&&(id, _)| id == parent).map(|&(_, index)| index);
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => only,
        (Some(first), Some(second)) => {
            let wanted = if node.kind == SERVER { CLIENT } else { SERVER };
            [first, second].into_iter().find(|&index| nodes[index as usize].kind == wanted).unwrap_or(NONE)
        }
        _ => NONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(nodes: &[(u64, u64, i32)]) -> Vec<(i32, i32, i32)> {
        let nodes: Vec<_> = nodes.iter().map(|&(id, parent, kind)| Node { id, parent: (parent != 0).then_some(parent), kind }).collect();
        let mut out = Vec::new();
        Numbering::default().number(&nodes, &mut out);
        out.iter().map(|n| (n.left, n.right, n.parent)).collect()
    }

    #[test]
    fn worked_examples_of_the_format() {
        assert_eq!(
            number(&[(1, 0, 1), (2, 1, 1), (3, 0, 1), (4, 3, 1), (5, 4, 1)]),
            [(1, 4, -1), (2, 3, 1), (5, 10, -1), (6, 9, 5), (7, 8, 6)]
        );
        assert_eq!(number(&[(1, 9, 1), (2, 1, 1), (3, 1, 1)]), [(0, 0, 0); 3]);
        assert_eq!(number(&[(1, 0, 1), (2, 1, 1), (3, 9, 1), (4, 3, 1)]), [(1, 4, -1), (2, 3, 1), (0, 0, 0), (0, 0, 0)]);
        assert_eq!(
            number(&[(1, 0, 1), (2, 3, 1), (3, 2, 1), (4, 4, 1), (5, 1, 1)]),
            [(1, 4, -1), (0, 0, 0), (0, 0, 0), (0, 0, 0), (2, 3, 1)]
        );
        // A client and a server with one id; children of the pair.
        assert_eq!(
            number(&[(1, 0, 1), (2, 1, 3), (5, 2, 1), (2, 1, 2), (3, 2, 3), (4, 2, 2)]),
            [(1, 12, -1), (2, 5, 1), (7, 8, 6), (6, 11, 1), (9, 10, 6), (3, 4, 2)]
        );
        assert_eq!(number(&[(1, 0, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]), [(0, 0, 0); 4]);
        assert_eq!(number(&[(1, 0, 1), (2, 1, 1), (2, 1, 1)]), [(1, 6, -1), (2, 3, 1), (4, 5, 1)]);
        // c-a-1, b, a, root, c-a-2, c-b-1.
        assert_eq!(
            number(&[(4, 2, 1), (3, 1, 1), (2, 1, 1), (1, 0, 1), (5, 2, 1), (6, 3, 1)]),
            [(7, 8, 6), (2, 5, 1), (6, 11, 1), (1, 12, -1), (9, 10, 6), (3, 4, 2)]
        );
    }

    #[test]
    fn keys_are_the_first_eight_bytes() {
        assert_eq!(key(&[1]), 1 << 56);
        assert_eq!(key(&[0, 0, 0, 0, 0, 0, 0, 2, 9, 9]), 2);
        assert_eq!(key(&[]), 0);
    }

    /// Recursion over the definition.
    fn reference(nodes: &[Node], at: usize, counter: &mut i32, out: &mut [Nested]) {
        *counter += 1;
        out[at].left = *counter;
        let left = *counter;
        for child in (0..nodes.len()).filter(|&c| nodes[c].parent == Some(nodes[at].id)) {
            out[child].parent = left;
            reference(nodes, child, counter, out);
        }
        *counter += 1;
        out[at].right = *counter;
    }

    proptest! {
        #[test]
        fn agrees_with_recursion(parents in prop::collection::vec(0u64..40, 1..40)) {
            let nodes: Vec<_> = parents.iter().zip(1u64..).map(|(&parent, id)| Node { id, parent: (parent != 0).then_some(parent), kind: 1 }).collect();
            let mut expected = vec![Nested::default(); nodes.len()];
            for node in &nodes {
                if let Some(parent) = node.parent.and_then(|id| expected.get_mut(id.checked_sub(1)? as usize)) {
                    parent.children += 1;
                }
            }
            if nodes.iter().all(|node| node.parent.is_some()) {
                expected.fill(Nested::default());
            }
            let mut counter = 0;
            for root in (0..nodes.len()).filter(|&r| nodes[r].parent.is_none()) {
                expected[root].parent = -1;
                reference(&nodes, root, &mut counter, &mut expected);
            }
            let mut out = Vec::new();
            Numbering::default().number(&nodes, &mut out);
            prop_assert_eq!(out, expected);
        }
    }
}
