//! Gathers spans of many traces into requests, as a collector does: grouped by resource and scope, a trace in one request or several.
//!
//! ```text
//!  Generator ──traces──► parts ──some wait a few traces──► queue ──every n spans──► Request (bytes, and what is in them)
//! ```

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;

use super::{Generator, Settings, Trace, span::SCOPES, truth::Summary, wire};

/// How many traces later the last part of a trace may come.
const MAX_DELAY: usize = 96;

/// Spans of one trace inside a [`Request`].
#[derive(Clone, Debug)]
pub struct Part {
    /// The trace.
    pub trace: Arc<Summary>,
    /// Which of [`Summary::spans`].
    pub spans: Range<usize>,
}

/// An encoded `ExportTraceServiceRequest` and what is in it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The message.
    pub body: Bytes,
    /// Number of spans.
    pub spans: usize,
    /// The spans by trace. A trace may occur more than once.
    pub parts: Vec<Part>,
}

/// An endless or limited run of requests. Holds the spans of at most some hundred traces.
#[derive(Debug)]
pub struct Requests {
    generator: Generator,
    traces_left: Option<usize>,
    generated: usize,
    /// Parts that wait until as many traces as their first number have been generated.
    delayed: BinaryHeap<Reverse<Delayed>>,
    queue: VecDeque<Queued>,
    queued_spans: usize,
}

#[derive(Debug)]
struct Queued {
    trace: Arc<Trace>,
    spans: Range<usize>,
}

#[derive(Debug)]
struct Delayed {
    due: usize,
    /// Makes the order total, hence deterministic.
    number: usize,
    part: Queued,
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.number) == (other.due, other.number)
    }
}

impl Eq for Delayed {}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl Requests {
    /// Requests that hold the first `traces` traces of the generator, or requests without end.
    pub fn new(settings: Settings, traces: Option<usize>) -> Self {
        Self {
            generator: Generator::new(settings),
            traces_left: traces,
            generated: 0,
            delayed: BinaryHeap::new(),
            queue: VecDeque::new(),
            queued_spans: 0,
        }
    }

    /// The end of the next generated trace's root span, Unix nanoseconds. See [`Generator::set_time`].
    pub fn set_time(&mut self, time_ns: u64) {
        self.generator.set_time(time_ns);
    }

    /// Generates no further traces: what is on its way is still returned.
    pub fn stop(&mut self) {
        self.traces_left = Some(0);
    }

    fn generate(&mut self) {
        let trace = Arc::new(self.generator.trace());
        for (number, spans) in trace.parts().enumerate() {
            let part = Queued { trace: Arc::clone(&trace), spans };
            if number == 0 {
                self.enqueue(part);
            } else {
                let due = self.generated + 1 + self.generator.dice.below(MAX_DELAY);
                self.delayed.push(Reverse(Delayed { due, number: self.generated * 8 + number, part }));
            }
        }
        self.generated += 1;
    }

    fn enqueue(&mut self, part: Queued) {
        self.queued_spans += part.spans.len();
        self.queue.push_back(part);
    }

    fn release_delayed(&mut self, all: bool) {
        while self.delayed.peek().is_some_and(|Reverse(next)| all || next.due <= self.generated) {
            if let Some(Reverse(next)) = self.delayed.pop() {
                self.enqueue(next.part);
            }
        }
    }
}

impl Iterator for Requests {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let wanted = self.generator.settings.spans_per_request.max(1);
        while self.queued_spans < wanted {
            match &mut self.traces_left {
                Some(0) => {
                    self.release_delayed(true);
                    break;
                }
                Some(left) => *left -= 1,
                None => {}
            }
            self.generate();
            self.release_delayed(false);
        }
        let mut taken: Vec<Queued> = Vec::new();
        let mut room = wanted;
        while room > 0
            && let Some(mut part) = self.queue.pop_front()
        {
            if part.spans.len() > room {
                let rest = part.spans.start + room..part.spans.end;
                part.spans.end = rest.start;
                self.queue.push_front(Queued { trace: Arc::clone(&part.trace), spans: rest });
            }
            room -= part.spans.len();
            taken.push(part);
        }
        let spans = wanted - room;
        self.queued_spans -= spans;
        if taken.is_empty() {
            return None;
        }
        let body = assemble(&self.generator, taken.iter().map(|part| (part.trace.as_ref(), part.spans.clone())));
        let parts = taken.into_iter().map(|part| Part { trace: Arc::clone(&part.trace.summary), spans: part.spans }).collect();
        Some(Request { body: Bytes::from(body), spans, parts })
    }
}

/// Encodes the spans as one `ExportTraceServiceRequest`, grouped by resource and scope; inside a scope they keep their order.
pub(super) fn assemble<'a>(generator: &Generator, parts: impl Iterator<Item = (&'a Trace, Range<usize>)>) -> Vec<u8> {
    let mut spans: Vec<Grouped<'_>> = Vec::new();
    for (trace, range) in parts {
        spans.extend(range.map(|index| (trace.groups[index], trace.span_bytes(index))));
    }
    spans.sort_by_key(|(group, _)| *group);

    let mut out = Vec::with_capacity(spans.iter().map(|(_, bytes)| bytes.len() + 4).sum::<usize>() + 40_000);
    // Length of each scope's message, and its spans.
    let mut scopes: Vec<(usize, &[Grouped<'_>])> = Vec::with_capacity(SCOPES);
    for of_resource in spans.chunk_by(|a, b| usize::from(a.0) / SCOPES == usize::from(b.0) / SCOPES) {
        let resource = generator.resources[usize::from(of_resource[0].0) / SCOPES].as_slice();
        scopes.clear();
        for of_scope in of_resource.chunk_by(|a, b| a.0 == b.0) {
            let scope = generator.scopes[usize::from(of_scope[0].0)].len();
            let content = wire::field_len(scope) + of_scope.iter().map(|(_, bytes)| wire::field_len(bytes.len())).sum::<usize>();
            scopes.push((content, of_scope));
        }
        let content = wire::field_len(resource.len())
            + scopes.iter().map(|(content, _)| wire::field_len(*content)).sum::<usize>()
            + wire::field_len(SCHEMA.len());
        wire::header(&mut out, 1, content);
        wire::bytes(&mut out, 1, resource);
        for (content, of_scope) in &scopes {
            wire::header(&mut out, 2, *content);
            wire::bytes(&mut out, 1, &generator.scopes[usize::from(of_scope[0].0)]);
            for (_, bytes) in *of_scope {
                wire::bytes(&mut out, 2, bytes);
            }
        }
        wire::bytes(&mut out, 3, SCHEMA.as_bytes());
    }
    out
}

/// A span's resource and scope, and its bytes.
type Grouped<'a> = (u16, &'a [u8]);

const SCHEMA: &str = "https://opentelemetry.io/schemas/1.36.0";
