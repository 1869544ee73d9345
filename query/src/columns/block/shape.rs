//! Which spans belong together: levels of one leaf of spans say it for all.
//!
//! ```text
//!  repetition  0 3 1 3 3 2 0        0: a trace begins, 1: a resource, 2: a scope, 3: only a span
//!  definition  3 3 3 3 3 3 1        less than 3: something is empty
//!  traces      0         6 6    resources 0 2 6 6    scopes 0 2 5 6
//! ```

use std::sync::Arc;

use super::leaves::{ELEMENT, RESOURCE, SCOPE, SPAN};

/// Where the spans of traces, resources and scopes begin, and where the last ones end.
#[derive(Debug, Default)]
pub(super) struct Shape {
    pub(super) traces: Arc<Vec<u32>>,
    pub(super) resources: Arc<Vec<u32>>,
    pub(super) scopes: Arc<Vec<u32>>,
    /// Resource of each scope.
    pub(super) resource_of_scope: Vec<u32>,
}

/// Whether a trace begins with an entry, by its repetition and definition level.
fn of_trace((repetition, _): (u8, u8)) -> bool {
    repetition < RESOURCE
}

fn of_resource((repetition, definition): (u8, u8)) -> bool {
    (repetition <= RESOURCE) & (definition >= RESOURCE)
}

fn of_scope((repetition, definition): (u8, u8)) -> bool {
    (repetition <= SCOPE) & (definition >= SCOPE)
}

/// Offsets of things whose number is known, and how many have begun.
struct Offsets(Vec<u32>, usize);

impl Offsets {
    fn new(count: usize) -> Self {
        Self(vec![0; count + 1], 0)
    }

    #[inline]
    fn begin_if(&mut self, begins: bool, spans: u32) {
        self.0[self.1] = spans;
        self.1 += usize::from(begins);
    }

    fn end(mut self, spans: u32) -> Vec<u32> {
        self.0[self.1] = spans;
        self.0
    }
}

impl Shape {
    /// From the levels of a required leaf of spans.
    pub(super) fn new(repetition: &[u8], definition: &[u8]) -> Self {
        let levels = || repetition.iter().copied().zip(definition.iter().copied());
        let count = |begins: fn((u8, u8)) -> bool| levels().map(|entry| usize::from(begins(entry))).sum::<usize>();
        let (mut traces, mut resources, mut scopes) =
            (Offsets::new(count(of_trace)), Offsets::new(count(of_resource)), Offsets::new(count(of_scope)));
        let mut resource_of_scope = vec![0; scopes.0.len()];
        let mut spans = 0;
        // Entries are short runs of every length, so there is no branch to guess: what does not begin here is written over by what does.
        for entry in levels() {
            traces.begin_if(of_trace(entry), spans);
            resources.begin_if(of_resource(entry), spans);
            resource_of_scope[scopes.1] = (resources.1 as u32).saturating_sub(1);
            scopes.begin_if(of_scope(entry), spans);
            spans += u32::from(entry.1 >= SPAN);
        }
        resource_of_scope.pop();
        let [traces, resources, scopes] = [traces, resources, scopes].map(|offsets| Arc::new(offsets.end(spans)));
        Self { traces, resources, scopes, resource_of_scope }
    }

    /// Number of spans.
    pub(super) fn spans(&self) -> usize {
        self.traces.last().map_or(0, |&end| end as usize)
    }
}

/// Where the events (links) of each span begin, and where the last ones end; from the levels of a required leaf of events (links).
pub(super) fn element_offsets(repetition: &[u8], definition: &[u8]) -> Vec<u32> {
    let mut offsets = Vec::new();
    let mut elements = 0;
    for (&repetition, &definition) in repetition.iter().zip(definition) {
        if repetition <= SPAN && definition >= SPAN {
            offsets.push(elements);
        }
        elements += u32::from(definition >= ELEMENT);
    }
    offsets.push(elements);
    offsets
}
