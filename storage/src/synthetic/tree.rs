//! Call trees: who called whom, when, and what went wrong. Nothing is encoded here.

use rand_chacha::{ChaCha8Rng, rand_core::Rng};

use super::{
    catalog::{Protocol, SCHEDULER, SERVICES, TOPICS},
    truth::{Connection, Edge},
};

/// Random choices in integers only, so that the same seed gives the same bytes on every machine.
#[derive(Debug)]
pub(super) struct Dice(pub(super) ChaCha8Rng);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `0..n`; 0 if `n` is 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// In `0..n`, low numbers much more often than high ones.
    pub(super) fn skewed(&mut self, n: usize) -> usize {
        let uniform = u64::from(self.0.next_u32());
        ((((uniform * uniform) >> 32) * n as u64) >> 32) as usize
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<T>(&mut self, from: &[T]) -> Option<usize> {
        (!from.is_empty()).then(|| self.skewed(from.len()))
    }
}

/// What a span is about. Numbers point into the catalogue's tables of the span's service, or of the server's for a client's span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Server { operation: u8 },
    Client { server: u8, operation: u8 },
    Database { statement: u8 },
    Internal { name: u8 },
    Produce { topic: u8 },
    Consume { topic: u8 },
}

/// One span of a tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    /// Index of the parent, always smaller than the own; the root's is its own.
    pub(super) parent: u32,
    pub(super) service: u8,
    pub(super) pod: u8,
    pub(super) step: Step,
    pub(super) error: bool,
    /// Whether the error began here and was not handed up by a child.
    pub(super) error_origin: bool,
    pub(super) id: u64,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    children: u32,
    placed: u32,
}

impl Node {
    pub(super) fn name(&self) -> &'static str {
        let service = &SERVICES[usize::from(self.service)];
        match self.step {
            Step::Server { operation } => service.operations[usize::from(operation)].name,
            Step::Client { server, operation } => {
                let operation = &SERVICES[usize::from(server)].operations[usize::from(operation)];
                match operation.protocol {
                    // An HTTP client does not know the route.
                    Protocol::Http(method, _) => method,
                    Protocol::Grpc(..) => operation.name,
                }
            }
            Step::Database { statement } => service.statements[usize::from(statement)].name,
            Step::Internal { name } => service.internal[usize::from(name)],
            Step::Produce { topic } => TOPICS[usize::from(topic)].publish,
            Step::Consume { topic } => TOPICS[usize::from(topic)].process,
        }
    }

    /// The OTLP span kind.
    pub(super) fn kind(&self) -> i32 {
        match self.step {
            Step::Internal { .. } => 1,
            Step::Server { .. } => 2,
            Step::Client { .. } | Step::Database { .. } => 3,
            Step::Produce { .. } => 4,
            Step::Consume { .. } => 5,
        }
    }
}

/// The spans of one trace, parents before children.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    /// Those that may get children.
    open: Vec<u32>,
}

impl Tree {
    /// Grows a tree of exactly `spans` spans (at least one) whose root ends at `end_ns`.
    pub(super) fn grow(&mut self, dice: &mut Dice, spans: usize, end_ns: u64) {
        self.nodes.clear();
        self.open.clear();
        self.plant_root(dice);
        while self.nodes.len() < spans {
            // Late ones get more children: that makes trees deep rather than flat.
            let open = self.open[self.open.len() - 1 - dice.skewed(self.open.len())];
            self.add_step(dice, open, spans - self.nodes.len());
        }
        self.schedule(dice, end_ns);
        self.fail(dice);
    }

    /// The arrow of the service graph that ends with this span, and whether it failed.
    pub(super) fn edge(&self, node: &Node) -> Option<(Edge, bool)> {
        let parent = &self.nodes[node.parent as usize];
        let server = SERVICES[usize::from(node.service)].name;
        let client = SERVICES[usize::from(parent.service)].name;
        let failed = parent.error || node.error;
        match (parent.step, node.step) {
            (Step::Client { .. }, Step::Server { .. }) => Some((Edge { client, server, connection: Connection::Request }, failed)),
            (Step::Produce { .. }, Step::Consume { .. }) => Some((Edge { client, server, connection: Connection::Messaging }, failed)),
            (_, Step::Database { statement }) => {
                let system = SERVICES[usize::from(node.service)].statements[usize::from(statement)].system;
                Some((Edge { client: server, server: system, connection: Connection::Database }, node.error))
            }
            _ => None,
        }
    }

    fn plant_root(&mut self, dice: &mut Dice) {
        let (service, step) = if dice.one_in(16) {
            let name = dice.skewed(SERVICES[usize::from(SCHEDULER)].internal.len()) as u8;
            (SCHEDULER, Step::Internal { name })
        } else {
            (0, Step::Server { operation: dice.skewed(SERVICES[0].operations.len()) as u8 })
        };
        let pod = dice.below(usize::from(SERVICES[usize::from(service)].pods)) as u8;
        self.push(dice, 0, service, pod, step);
        self.nodes[0].children = 0;
    }

    /// Adds one or two spans below `parent`; never more than `room`.
    fn add_step(&mut self, dice: &mut Dice, parent: u32, room: usize) {
        let Node { service, pod, .. } = self.nodes[parent as usize];
        let about = &SERVICES[usize::from(service)];
        match dice.below(64) {
            0..22 if room >= 2 => {
                if let Some(call) = dice.pick(about.calls) {
                    let server = about.calls[call];
                    let operation = dice.skewed(SERVICES[usize::from(server)].operations.len()) as u8;
                    let client = self.push(dice, parent, service, pod, Step::Client { server, operation });
                    let server_pod = dice.below(usize::from(SERVICES[usize::from(server)].pods)) as u8;
                    self.push(dice, client, server, server_pod, Step::Server { operation });
                    return;
                }
            }
            22..25 if room >= 2 => {
                if let Some(topic) = dice.pick(about.topics) {
                    let topic = about.topics[topic];
                    let producer = self.push(dice, parent, service, pod, Step::Produce { topic });
                    let consumer = TOPICS[usize::from(topic)].consumer;
                    let consumer_pod = dice.below(usize::from(SERVICES[usize::from(consumer)].pods)) as u8;
                    self.push(dice, producer, consumer, consumer_pod, Step::Consume { topic });
                    return;
                }
            }
            25..46 => {
                if let Some(statement) = dice.pick(about.statements) {
                    self.push(dice, parent, service, pod, Step::Database { statement: statement as u8 });
                    return;
                }
            }
            _ => {}
        }
        let name = dice.skewed(about.internal.len()) as u8;
        self.push(dice, parent, service, pod, Step::Internal { name });
    }

    fn push(&mut self, dice: &mut Dice, parent: u32, service: u8, pod: u8, step: Step) -> u32 {
        let index = self.nodes.len() as u32;
        let id = dice.next().max(1);
        self.nodes.push(Node {
            parent,
            service,
            pod,
            step,
            error: false,
            error_origin: false,
            id,
            start_ns: 0,
            end_ns: 0,
            children: 0,
            placed: 0,
        });
        self.nodes[parent as usize].children += 1;
        if matches!(step, Step::Server { .. } | Step::Consume { .. } | Step::Internal { .. }) {
            self.open.push(index);
        }
        index
    }

    /// Gives every span a time inside its parent's: siblings one after the other, a server inside its client, a consumer after its
    /// producer.
    fn schedule(&mut self, dice: &mut Dice, end_ns: u64) {
        // Log-uniform from 8 ms to 2 s.
        let scale = 1u64 << (23 + dice.below(8));
        let duration = scale + dice.below(scale as usize) as u64;
        self.nodes[0].start_ns = end_ns.saturating_sub(duration);
        self.nodes[0].end_ns = end_ns;
        for index in 1..self.nodes.len() {
            let node = self.nodes[index];
            let parent = &mut self.nodes[node.parent as usize];
            let (from, to) = (parent.start_ns, parent.end_ns);
            let (start, end) = match (parent.step, node.step) {
                (Step::Client { .. }, _) => {
                    let gap = (to - from) / 8;
                    (from + dice.below(gap as usize + 1) as u64, to - dice.below(gap as usize + 1) as u64)
                }
                (Step::Produce { .. }, _) => {
                    let start = to + 200_000 + dice.below(1 << 25) as u64;
                    (start, start + 50_000 + dice.below(1 << 24) as u64)
                }
                _ => {
                    let slot = (to - from) / u64::from(parent.children);
                    let start = from + slot * u64::from(parent.placed);
                    let lead = dice.below((slot / 4) as usize + 1) as u64;
                    let tail = dice.below((slot / 2) as usize + 1) as u64;
                    parent.placed += 1;
                    (start + lead, start + slot - tail)
                }
            };
            self.nodes[index].start_ns = start;
            self.nodes[index].end_ns = end;
        }
    }

    /// One trace in eight has an error somewhere; three callers in four pass it up.
    fn fail(&mut self, dice: &mut Dice) {
        if !dice.one_in(8) {
            return;
        }
        let mut index = dice.below(self.nodes.len());
        self.nodes[index].error_origin = true;
        loop {
            self.nodes[index].error = true;
            let parent = self.nodes[index].parent as usize;
            if parent == index || dice.one_in(4) {
                break;
            }
            index = parent;
        }
    }
}
