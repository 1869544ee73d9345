//! Which spans belong together: levels of one leaf of spans say it for all.
//!
//! ```text
//!  repetition  0 3 1 3 3 2 0        0: a trace begins, 1: a resource, 2: a scope, 3: only a span
//!  definition  3 3 3 3 3 3 1        less than 3: something is empty
//!  traces      0         6 6    resources 0 2 6 6    scopes 0 2 5 6
//! ```

use super::leaves::{ELEMENT, RESOURCE, SCOPE, SPAN};

/// Where the spans of traces, resources and scopes begin, and where the last ones end.
#[derive(Debug, Default)]
pub(super) struct Shape {
    pub(super) traces: Vec<u32>,
    pub(super) resources: Vec<u32>,
    pub(super) scopes: Vec<u32>,
    /// Resource of each scope.
    pub(super) resource_of_scope: Vec<u32>,
}

impl Shape {
    /// From the levels of a required leaf of spans.
    pub(super) fn new(repetition: &[u8], definition: &[u8]) -> Self {
        let mut shape = Self::default();
        let mut spans = 0;
        for (&repetition, &definition) in repetition.iter().zip(definition) {
            if repetition < SPAN {
                if repetition < RESOURCE {
                    shape.traces.push(spans);
                }
                if repetition <= RESOURCE && definition >= RESOURCE {
                    shape.resources.push(spans);
                }
                if repetition <= SCOPE && definition >= SCOPE {
                    shape.scopes.push(spans);
                    shape.resource_of_scope.push((shape.resources.len() as u32).saturating_sub(1));
                }
            }
            spans += u32::from(definition >= SPAN);
        }
        shape.traces.push(spans);
        shape.resources.push(spans);
        shape.scopes.push(spans);
        shape
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
