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

impl Shape {
    /// From the levels of a required leaf of spans.
    pub(super) fn new(repetition: &[u8], definition: &[u8]) -> Self {
        let (mut traces, mut resources, mut scopes, mut resource_of_scope) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut spans = 0;
        for (&repetition, &definition) in repetition.iter().zip(definition) {
            if repetition < SPAN {
                if repetition < RESOURCE {
                    traces.push(spans);
                }
                if repetition <= RESOURCE && definition >= RESOURCE {
                    resources.push(spans);
                }
                if repetition <= SCOPE && definition >= SCOPE {
                    scopes.push(spans);
                    resource_of_scope.push((resources.len() as u32).saturating_sub(1));
                }
            }
            spans += u32::from(definition >= SPAN);
        }
        for offsets in [&mut traces, &mut resources, &mut scopes] {
            offsets.push(spans);
        }
        Self { traces: Arc::new(traces), resources: Arc::new(resources), scopes: Arc::new(scopes), resource_of_scope }
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
