//! What has to be known of rows before they are combined, read from all leaves at once.
//!
//! Of every leaf: whether the rows are equal in it, what it adds to their size, and, below resources and scopes, which elements are equal
//! in it. Of a few leaves the values themselves. A [`Meeting`] is one trace that several inputs have.

use std::{collections::HashMap, sync::Arc};

use super::{
    combine::{self, Resource, Row, Scope, Span},
    leaves::Failure,
    levels::Shape,
    roles::Roles,
};
use crate::block::{column::Values, nested};

/// Decoded rows of one part for a leaf.
#[derive(Clone, Debug)]
pub(super) struct Decoded {
    pub(super) shape: Arc<Shape>,
    pub(super) values: Values,
    /// The first of them. Methods here take rows of the part; the shape counts from this one.
    pub(super) first: u32,
}

/// The error that the leaves of a part do not fit each other.
pub(super) fn disagree(part: u32) -> Failure {
    Failure::Part(part, "leaves disagree about the structure of a row".to_owned())
}

/// One trace that several inputs have: part and row of each, in the order of the inputs.
pub(super) type Meeting = Vec<(u32, u32)>;

/// What one leaf says of the meetings.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Per meeting: whether all rows are the same in this leaf.
    equal: Vec<bool>,
    /// Per meeting: Σ over the rows of 1 per value, and the length of byte arrays (block-format.md §13.3).
    sizes: Vec<u64>,
    /// Per meeting and row: equal numbers for equal elements; empty if the leaf tells no resources or scopes apart.
    classes: Vec<Vec<Vec<u32>>>,
    /// The decoded parts, if the leaf is looked into.
    decoded: Option<Vec<Decoded>>,
}

impl Facts {
    /// Looks at a leaf of which the rows of all meetings were decoded.
    pub(super) fn of(roles: &Roles, leaf: usize, meetings: &[Meeting], decoded: Vec<Decoded>) -> Self {
        let mut facts = Self::default();
        let telling = roles.telling[leaf] && roles.rebatches();
        let (mut first, mut other) = (Vec::new(), Vec::new());
        for meeting in meetings {
            let (mut equal, mut size) = (true, 0);
            first.clear();
            for (at, &(part, row)) in meeting.iter().enumerate() {
                let found = if at == 0 { &mut first } else { &mut other };
                found.clear();
                size += decoded[part as usize].spell(row, &mut |bytes| found.extend_from_slice(bytes));
                equal &= at == 0 || first == other;
            }
            facts.equal.push(equal);
            facts.sizes.push(size);
            if telling {
                let mut numbers: HashMap<Vec<u8>, u32> = HashMap::new();
                let mut classes = Vec::with_capacity(meeting.len());
                for &(part, row) in meeting {
                    let mut elements: Vec<Vec<u8>> = Vec::new();
                    let depth = roles.depth[leaf];
                    decoded[part as usize].elements(row, depth, &mut elements);
                    let number = |element| {
                        let next = numbers.len() as u32;
                        *numbers.entry(element).or_insert(next)
                    };
                    classes.push(elements.into_iter().map(number).collect());
                }
                facts.classes.push(classes);
            }
        }
        if roles.looked.has(leaf) {
            facts.decoded = Some(decoded);
        }
        facts
    }
}

impl Decoded {
    /// Hands out an unambiguous spelling of a row's entries, and returns what they add to the size of the row.
    fn spell(&self, row: u32, out: &mut dyn FnMut(&[u8])) -> u64 {
        let row = row - self.first;
        let mut size = 0;
        let mut values = self.shape.values(row);
        for (repetition, definition) in self.shape.levels(row) {
            out(&[repetition, definition]);
            if self.shape.has_value(definition) {
                let Some(at) = values.next() else { break };
                size += 1 + self.spell_value(at as usize, out);
            } else {
                size += 2;
            }
        }
        size
    }

    /// The same of one value; its size without the 1 that every entry counts.
    fn spell_value(&self, at: usize, out: &mut dyn FnMut(&[u8])) -> u64 {
        match &self.values {
            Values::Codes { .. } | Values::Bytes(_) => {
                let string = self.values.string(at).unwrap_or_default();
                out(&(string.len() as u64).to_le_bytes());
                out(string);
                string.len() as u64
            }
            Values::Long(values) => {
                out(&values.get(at).copied().unwrap_or_default().to_le_bytes());
                1
            }
            Values::Double(values) => {
                out(&values.get(at).copied().unwrap_or_default().to_bits().to_le_bytes());
                1
            }
            Values::Bool(values) => {
                out(&[values.get(at).copied().unwrap_or_default().into()]);
                1
            }
        }
    }

    /// Spellings of the elements at nesting level `depth` of a row.
    fn elements(&self, row: u32, depth: u8, out: &mut Vec<Vec<u8>>) {
        let row = row - self.first;
        let mut values = self.shape.values(row);
        for (repetition, definition) in self.shape.levels(row) {
            let begins = repetition <= depth;
            if begins || out.is_empty() {
                out.push(Vec::new());
            }
            let Some(element) = out.last_mut() else { return };
            element.extend_from_slice(&[if begins { 0 } else { repetition }, definition]);
            if self.shape.has_value(definition) {
                let Some(at) = values.next() else { return };
                self.spell_value(at as usize, &mut |bytes| element.extend_from_slice(bytes));
            }
        }
    }

    /// The string of the only entry of a row.
    pub(super) fn string(&self, row: u32) -> Option<&[u8]> {
        self.values.string(self.shape.values(row - self.first).start as usize)
    }

    /// The integer of the only entry of a row.
    pub(super) fn long(&self, row: u32) -> Option<i64> {
        self.long_at(self.shape.values(row - self.first).start)
    }

    fn long_at(&self, at: u32) -> Option<i64> {
        match &self.values {
            Values::Long(values) => values.get(at as usize).copied(),
            _ => None,
        }
    }
}

/// What all leaves say of the meetings.
pub(super) struct Known<'a> {
    roles: &'a Roles,
    meetings: &'a [Meeting],
    facts: Vec<Facts>,
}

impl<'a> Known<'a> {
    /// `facts` has one per leaf.
    pub(super) fn new(roles: &'a Roles, meetings: &'a [Meeting], facts: Vec<Facts>) -> Self {
        Self { roles, meetings, facts }
    }

    /// The version's leaves.
    pub(super) fn roles(&self) -> &'a Roles {
        self.roles
    }

    /// Whether all rows of a meeting are equal value by value.
    pub(super) fn equal(&self, meeting: usize) -> bool {
        self.facts.iter().all(|facts| facts.equal[meeting])
    }

    /// Size of the rows of a meeting together.
    pub(super) fn size(&self, meeting: usize) -> u64 {
        self.facts.iter().map(|facts| facts.sizes[meeting]).sum()
    }

    /// A decoded leaf that is looked into.
    pub(super) fn looked(&self, leaf: usize, part: u32) -> Option<&Decoded> {
        self.facts[leaf].decoded.as_ref()?.get(part as usize)
    }

    /// Spans of a row.
    pub(super) fn spans(&self, part: u32, row: u32) -> u64 {
        self.looked(self.roles.looked.span_id, part).map_or(0, |decoded| decoded.shape.values(row - decoded.first).len() as u64)
    }

    /// Gives every resource or scope of the rows of a meeting a number, equal ones the same.
    fn classes(&self, meeting: usize, depth: u8) -> Result<Vec<Vec<u32>>, Failure> {
        let leaves: Vec<_> = (0..self.facts.len()).filter(|&leaf| self.roles.telling[leaf] && self.roles.depth[leaf] == depth).collect();
        let mut numbers: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut classes = Vec::new();
        for (row, &(part, _)) in self.meetings[meeting].iter().enumerate() {
            let of = |leaf: usize| self.facts[leaf].classes[meeting][row].as_slice();
            let count = leaves.first().map_or(0, |&leaf| of(leaf).len());
            if leaves.iter().any(|&leaf| of(leaf).len() != count) {
                return Err(disagree(part));
            }
            let mut number = |element: usize| {
                let next = numbers.len() as u32;
                *numbers.entry(leaves.iter().map(|&leaf| of(leaf)[element]).collect()).or_insert(next)
            };
            classes.push((0..count).map(&mut number).collect());
        }
        Ok(classes)
    }

    /// The rows of a meeting as [`combine::combine`] takes them.
    ///
    /// # Errors
    /// The leaves of a part do not fit each other.
    pub(super) fn rows(&self, meeting: usize) -> Result<Vec<Row>, Failure> {
        let classes = if self.roles.rebatches() { Some((self.classes(meeting, 1)?, self.classes(meeting, 2)?)) } else { None };
        let mut rows = Vec::new();
        for (at, &(part, row)) in self.meetings[meeting].iter().enumerate() {
            let classes = classes.as_ref().map(|(resources, scopes)| (resources[at].as_slice(), scopes[at].as_slice()));
            rows.push(self.row(part, row, classes).ok_or_else(|| disagree(part))?);
        }
        Ok(rows)
    }

    /// A row, if its leaves fit each other. `classes` are those of its resources and scopes by ordinal, where it matters.
    fn row(&self, part: u32, row: u32, classes: Option<(&[u32], &[u32])>) -> Option<Row> {
        let looked = &self.roles.looked;
        let leaf = |leaf: usize| self.looked(leaf, part);
        let (id, parent, kind) = (leaf(looked.span_id)?, leaf(looked.parent_span_id)?, leaf(looked.kind)?);
        let (start, status, service) = (leaf(looked.span_start)?, leaf(looked.status)?, leaf(looked.service)?);
        let local = row - id.first;
        if [parent, kind, start, status].into_iter().any(|other| !other.shape.levels(local).eq(id.shape.levels(local))) {
            return None;
        }
        // A value for every resource that is there.
        let mut names = service.shape.values(local);
        let services: Option<Vec<&[u8]>> = service
            .shape
            .levels(local)
            .map(
                |(_, definition)| {
                    if service.shape.has_value(definition) { service.values.string(names.next()? as usize) } else { Some(&[][..]) }
                },
            )
            .collect();
        let services = services?;
        // A value for every span that is there, at the same place in these leaves.
        let mut spans = id.shape.values(local).zip(parent.shape.values(local)).zip(kind.shape.values(local));
        let mut times = start.shape.values(local).zip(status.shape.values(local));
        let mut resources: Row = Vec::new();
        for (ordinal, scopes) in combine::outline(id.shape.levels(local)) {
            let class = classes.map_or(Some(0), |(resources, _)| resources.get(ordinal as usize).copied())?;
            let service = services.get(ordinal as usize)?.to_vec();
            let mut resource = Resource { ordinal, class, service, scopes: Vec::with_capacity(scopes.len()) };
            for (ordinal, entries) in scopes {
                let class = classes.map_or(Some(0), |(_, scopes)| scopes.get(ordinal as usize).copied())?;
                let mut scope = Scope { ordinal, class, spans: Vec::with_capacity(entries.len()) };
                for ordinal in entries {
                    let (((id_at, parent_at), kind_at), (start_at, status_at)) = (spans.next()?, times.next()?);
                    let parent = parent.values.string(parent_at as usize)?;
                    scope.spans.push(Span {
                        ordinal,
                        id: id.values.string(id_at as usize)?.to_vec(),
                        parent: (!parent.is_empty()).then(|| nested::key(parent)),
                        kind: kind.long_at(kind_at)?,
                        start: start.long_at(start_at)? as u64,
                        error: status.long_at(status_at)? == 2,
                    });
                }
                resource.scopes.push(scope);
            }
            resources.push(resource);
        }
        Some(resources)
    }
}
