//! What the spans and resources of a tree look like on the wire.

use std::fmt::Write as _;

use super::{
    catalog::{COUNTRIES, CURRENCIES, EXCEPTIONS, FRAMES, Protocol, SERVICES, TOPICS, USER_AGENTS},
    tree::{Dice, Node, Step, Tree},
    wire::{self, Attributes},
};
use crate::id::TraceId;

/// Instrumentation scopes of a resource.
pub(super) const SCOPES: usize = 4;

/// Which scope a span is recorded by.
pub(super) fn scope_of(step: Step) -> usize {
    match step {
        Step::Server { .. } | Step::Client { .. } => 0,
        Step::Database { .. } => 1,
        Step::Internal { .. } => 2,
        Step::Produce { .. } | Step::Consume { .. } => 3,
    }
}

/// Content of the `InstrumentationScope` message.
pub(super) fn scope(service: usize, scope: usize) -> Vec<u8> {
    let service = &SERVICES[service];
    let name = match scope {
        0 => format!("io.opentelemetry.contrib.{}.rpc", service.language),
        1 => format!("io.opentelemetry.contrib.{}.db", service.language),
        2 => format!("{}.{}", service.namespace, service.name),
        _ => format!("io.opentelemetry.contrib.{}.messaging", service.language),
    };
    let version = if scope == 2 { service.version } else { "0.61.0" };
    let mut out = Vec::new();
    wire::bytes(&mut out, 1, name.as_bytes());
    wire::bytes(&mut out, 2, version.as_bytes());
    out
}

/// Content of the `Resource` message of one pod.
pub(super) fn resource(service: usize, pod: usize) -> Vec<u8> {
    let number = service;
    let service = &SERVICES[service];
    // A fixed mix of the two numbers: pods keep their names whatever the seed.
    let mut mix = (number as u64 * 131 + pod as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mix ^= mix >> 29;
    let hash = mix.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let deployment = format!("{}-{}", service.name, service.namespace);
    let replica_set = format!("{deployment}-{:08x}", (number as u32 + 7).wrapping_mul(0x9e37_79b9));
    let pod_name = format!("{replica_set}-{:05x}", hash & 0xf_ffff);
    let uid = format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        hash as u32,
        hash >> 32 & 0xffff,
        hash >> 48 & 0xfff,
        mix & 0xfff,
        mix >> 12 & 0xffff_ffff_ffff
    );
    let node = format!("ip-10-2-{}-{}.internal", hash >> 8 & 3, hash >> 16 & 7);

    let mut out = Vec::new();
    let mut attributes = Attributes { out: &mut out, field: 1 };
    attributes.string("service.name", service.name);
    attributes.string("service.namespace", service.namespace);
    attributes.string("service.version", service.version);
    attributes.string("service.instance.id", &pod_name);
    attributes.string("deployment.environment.name", "production");
    attributes.string("telemetry.sdk.language", service.language);
    attributes.string("telemetry.sdk.name", "opentelemetry");
    attributes.string("telemetry.sdk.version", "1.52.0");
    attributes.string("k8s.cluster.name", "shop-eu-1");
    attributes.string("k8s.namespace.name", service.namespace);
    attributes.string("k8s.deployment.name", &deployment);
    attributes.string("k8s.pod.name", &pod_name);
    attributes.string("k8s.pod.uid", &uid);
    attributes.string("k8s.container.name", service.name);
    attributes.string("k8s.node.name", &node);
    attributes.string("cloud.region", "eu-central-1");
    attributes.integer("process.pid", 1 + (hash >> 20 & 0xff) as i64);
    attributes.boolean("k8s.pod.preemptible", hash >> 40 & 3 == 0);
    attributes.double("host.cpu.limit", 0.5 + (hash >> 44 & 3) as f64 * 0.5);
    attributes.strings("process.command_args", ["/usr/bin/app", "--listen=:8080", "--log=json"].into_iter());
    out
}

/// Appends the content of one `Span` message. `scratch` is only lent for its memory.
pub(super) fn encode(out: &mut Vec<u8>, scratch: &mut String, dice: &mut Dice, trace_id: TraceId, tree: &Tree, index: usize) {
    let node = &tree.nodes[index];
    let parent = &tree.nodes[node.parent as usize];
    let root = node.parent as usize == index;
    wire::bytes(out, 1, &trace_id.0);
    wire::bytes(out, 2, &node.id.to_be_bytes());
    if trace_id.0[0] & 7 == 0 {
        wire::bytes(out, 3, b"ot=th:c;rv:9b2d4f61a0c3e7");
    }
    if !root {
        wire::bytes(out, 4, &parent.id.to_be_bytes());
    }
    wire::bytes(out, 5, node.name().as_bytes());
    wire::integer(out, 6, node.kind() as u64);
    wire::fixed64(out, 7, node.start_ns);
    wire::fixed64(out, 8, node.end_ns);
    attributes(&mut Attributes { out: &mut *out, field: 9 }, scratch, dice, node);
    if node.error_origin {
        exception(out, scratch, dice, node);
    } else if dice.one_in(16) {
        let at = node.start_ns + (node.end_ns - node.start_ns) / 2;
        wire::message(out, 11, |event| {
            wire::fixed64(event, 1, at);
            wire::bytes(event, 2, b"cache.miss");
            let mut attributes = Attributes { out: event, field: 3 };
            attributes.integer("cache.size", 1000 + dice.below(9000) as i64);
            attributes.boolean("cache.stale", dice.one_in(3));
        });
    }
    if matches!(node.step, Step::Consume { .. }) {
        wire::message(out, 13, |link| {
            wire::bytes(link, 1, &trace_id.0);
            wire::bytes(link, 2, &parent.id.to_be_bytes());
            Attributes { out: link, field: 4 }.string("messaging.operation.type", "process");
        });
    }
    if node.error {
        wire::message(out, 15, |status| {
            if node.error_origin {
                wire::bytes(status, 2, EXCEPTIONS[node.id as usize % EXCEPTIONS.len()].1.as_bytes());
            }
            wire::integer(status, 3, 2);
        });
    }
    // Field 16, fixed32: sampled, and whether the parent is of another process.
    let remote = !root && parent.service != node.service;
    out.extend_from_slice(&[0x85, 0x01, 1, if remote { 3 } else { 1 }, 0, 0]);
}

fn exception(out: &mut Vec<u8>, scratch: &mut String, dice: &mut Dice, node: &Node) {
    let (kind, message) = EXCEPTIONS[node.id as usize % EXCEPTIONS.len()];
    scratch.clear();
    let _ = writeln!(scratch, "{kind}: {message}");
    for _ in 0..6 + dice.below(8) {
        let _ = writeln!(scratch, "\tat {}", FRAMES[dice.below(FRAMES.len())]);
    }
    wire::message(out, 11, |event| {
        wire::fixed64(event, 1, node.end_ns);
        wire::bytes(event, 2, b"exception");
        let mut attributes = Attributes { out: event, field: 3 };
        attributes.string("exception.type", kind);
        attributes.string("exception.message", message);
        attributes.string("exception.stacktrace", scratch);
        attributes.boolean("exception.escaped", true);
    });
}

/// Replaces what `scratch` holds and lends it.
macro_rules! text {
    ($scratch:expr, $($arguments:tt)*) => {{
        $scratch.clear();
        let _ = write!($scratch, $($arguments)*);
        $scratch.as_str()
    }};
}

fn attributes(attributes: &mut Attributes<'_>, scratch: &mut String, dice: &mut Dice, node: &Node) {
    match node.step {
        Step::Server { operation } => {
            let operation = &SERVICES[usize::from(node.service)].operations[usize::from(operation)];
            match operation.protocol {
                Protocol::Http(method, route) => {
                    http_request(attributes, method, node.error);
                    attributes.string("http.route", route);
                    attributes.string("url.scheme", "https");
                    attributes.string("url.path", text!(scratch, "{}", route.replace("{id}", text_id(dice).as_str())));
                    attributes.string("client.address", text!(scratch, "10.{}.{}.{}", dice.below(4), dice.below(256), dice.below(256)));
                    attributes.string("user_agent.original", USER_AGENTS[dice.skewed(USER_AGENTS.len())]);
                    attributes.integer("http.response.body.size", 200 + dice.skewed(60_000) as i64);
                }
                Protocol::Grpc(service, method) => {
                    grpc_request(attributes, service, method, node.error);
                    attributes.string("network.peer.address", text!(scratch, "10.2.{}.{}", dice.below(4), dice.below(256)));
                    attributes.string("network.transport", "tcp");
                }
            }
            thread(attributes, scratch, dice);
            business(attributes, scratch, dice);
        }
        Step::Client { server, operation } => {
            let server = &SERVICES[usize::from(server)];
            match server.operations[usize::from(operation)].protocol {
                Protocol::Http(method, route) => {
                    http_request(attributes, method, node.error);
                    let route = route.replace("{id}", text_id(dice).as_str());
                    attributes.string("url.full", text!(scratch, "http://{}.{}.svc:8080{route}", server.name, server.namespace));
                }
                Protocol::Grpc(service, method) => grpc_request(attributes, service, method, node.error),
            }
            attributes.string("server.address", text!(scratch, "{}.{}.svc.cluster.local", server.name, server.namespace));
            attributes.integer("server.port", 8080);
            attributes.string("peer.service", server.name);
            attributes.boolean("rpc.retried", dice.one_in(40));
            thread(attributes, scratch, dice);
        }
        Step::Database { statement } => {
            let statement = &SERVICES[usize::from(node.service)].statements[usize::from(statement)];
            attributes.string("db.system.name", statement.system);
            attributes.string("db.namespace", statement.database);
            attributes.string("db.operation.name", statement.operation);
            if !statement.collection.is_empty() {
                attributes.string("db.collection.name", statement.collection);
            }
            attributes.string("db.query.text", statement.text);
            attributes.string("server.address", text!(scratch, "{}-{}.data.svc.cluster.local", statement.system, dice.below(3)));
            attributes.integer("server.port", if statement.system == "redis" { 6379 } else { 5432 });
            attributes.integer("db.response.returned_rows", dice.skewed(200) as i64);
            thread(attributes, scratch, dice);
        }
        Step::Internal { .. } => {
            thread(attributes, scratch, dice);
            attributes.string("code.function.name", text!(scratch, "{}#run{}", node.name(), dice.skewed(12)));
            attributes.integer("code.line.number", 20 + dice.skewed(800) as i64);
            attributes.integer("app.items", dice.skewed(50) as i64);
            attributes.double("app.score", dice.below(100_000) as f64 / 1000.0);
            attributes.boolean("app.cache.hit", !dice.one_in(4));
            attributes.string("app.request.id", text!(scratch, "{:016x}", dice.next()));
        }
        Step::Produce { topic } | Step::Consume { topic } => {
            attributes.string("messaging.system", "kafka");
            attributes.string("messaging.destination.name", TOPICS[usize::from(topic)].name);
            attributes.string("messaging.destination.partition.id", text!(scratch, "{}", dice.below(12)));
            attributes.string("messaging.client.id", text!(scratch, "{}-{}", SERVICES[usize::from(node.service)].name, node.pod));
            attributes.integer("messaging.kafka.offset", 80_000_000 + dice.below(1_000_000) as i64);
            attributes.integer("messaging.message.body.size", 120 + dice.skewed(4000) as i64);
            thread(attributes, scratch, dice);
        }
    }
}

fn http_request(attributes: &mut Attributes<'_>, method: &str, error: bool) {
    attributes.string("http.request.method", method);
    attributes.integer("http.response.status_code", if error { 503 } else { 200 });
    attributes.string("network.protocol.version", "1.1");
}

fn grpc_request(attributes: &mut Attributes<'_>, service: &str, method: &str, error: bool) {
    attributes.string("rpc.system", "grpc");
    attributes.string("rpc.service", service);
    attributes.string("rpc.method", method);
    attributes.integer("rpc.grpc.status_code", if error { 14 } else { 0 });
}

fn thread(attributes: &mut Attributes<'_>, scratch: &mut String, dice: &mut Dice) {
    let number = dice.below(32);
    attributes.integer("thread.id", 40 + number as i64);
    attributes.string("thread.name", text!(scratch, "worker-{number}"));
}

fn business(attributes: &mut Attributes<'_>, scratch: &mut String, dice: &mut Dice) {
    attributes.string("enduser.id", text!(scratch, "user-{}", dice.skewed(50_000)));
    attributes.string("app.country", COUNTRIES[dice.skewed(COUNTRIES.len())]);
    if dice.one_in(3) {
        attributes.double("app.cart.value", dice.skewed(40_000) as f64 / 100.0);
        attributes.string("app.currency", CURRENCIES[dice.skewed(CURRENCIES.len())]);
    }
    if dice.one_in(4) {
        let skus = [0; 3].map(|_| dice.skewed(5_000));
        scratch.clear();
        for sku in skus {
            let _ = write!(scratch, "SKU-{sku:04} ");
        }
        attributes.strings("app.product.skus", scratch.split_ascii_whitespace());
    }
    if dice.one_in(8) {
        attributes.boolean("app.premium", dice.one_in(5));
    }
}

fn text_id(dice: &mut Dice) -> String {
    dice.skewed(100_000).to_string()
}
