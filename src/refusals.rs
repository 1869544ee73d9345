//! What a configuration asks for that a process of its target cannot have.
//!
//! ```text
//!  Config ──► refusals ──┬──► the process does not start
//!                        └──► rubato config check
//! ```
//!
//! Both say all of it at once, in the same words and with lines. What only the machine can tell (ports, files, a bucket that does not answer) is
//! found by starting. A file may serve several targets: what concerns none of the modules of this one is no reason to refuse it.

use storage::backend;

use crate::{
    config::{
        Backend, COMPACTOR, Config, DISTRIBUTOR, INGESTER, KvStore, METRICS_GENERATOR, Problem, QUERIER, QUERY_FRONTEND, SINGLE_BINARY,
    },
    membership::Kind,
    modules,
};

/// Targets beside those that run everything.
const ROLES: &[&str] = &[DISTRIBUTOR, INGESTER, METRICS_GENERATOR, QUERY_FRONTEND, QUERIER, COMPACTOR];

/// Targets of Tempo that this version can't run on their own.
const OTHER_TARGETS: &[&str] = &[
    "all-3.0",
    "backend-scheduler",
    "backend-worker",
    "block-builder",
    "live-store",
    "metrics-generator-no-local-blocks",
    "overrides-api",
    "usage-report",
];

/// Everything that keeps a process of this configuration from starting, by line; nothing if it may try.
pub(crate) fn refusals(config: &Config) -> Vec<Problem> {
    let mut found = Refusals { config, problems: Vec::new() };
    let target = config.target.as_str();
    let is = |targets: &[&str]| config.is_single_binary() || targets.contains(&target);
    if !SINGLE_BINARY.contains(&target) && !ROLES.contains(&target) {
        found.target();
        return found.problems;
    }
    // A distributor keeps nothing, a querier knows no tenants' limits.
    if target != DISTRIBUTOR {
        found.bucket("storage.trace", &config.storage.backend);
        found.caches();
    }
    if let Some(user_overrides) = config.user_overrides.as_ref().filter(|_| target != QUERIER) {
        found.bucket("overrides.user_configurable_overrides.client", &user_overrides.backend);
    }
    if is(&[INGESTER, METRICS_GENERATOR, COMPACTOR]) {
        found.block();
    }
    if is(&[DISTRIBUTOR]) {
        found.receivers();
    }
    if target == DISTRIBUTOR {
        found.compression();
    }
    found.rings();
    if target == QUERIER {
        found.querier();
    }
    found.problems.sort();
    found.problems
}

struct Refusals<'a> {
    config: &'a Config,
    problems: Vec<Problem>,
}

impl Refusals<'_> {
    /// A problem of a key, told with the key's line.
    fn say(&mut self, key: &str, text: String) {
        self.problems.push(Problem::new(self.config.settings.line(key), text));
    }

    fn target(&mut self) {
        let target = self.config.target.as_str();
        let text = if OTHER_TARGETS.contains(&target) {
            let roles = ROLES.join(", ");
            format!("target \"{target}\" is not available in this version of Rubato: run the target all, or one of {roles}")
        } else {
            format!("unrecognised module name: {target}")
        };
        self.say("target", text);
    }

    fn bucket(&mut self, block: &str, backend: &Backend) {
        let key = format!("{block}.backend");
        match backend {
            Backend::Store(backend::Settings::Local(path)) if path.as_os_str().is_empty() => {
                let key = format!("{block}.local.path");
                self.say(&key, format!("{key} is empty"));
            }
            Backend::Store(_) => {}
            Backend::Unknown(name) => self.say(&key, format!("{key}: unknown backend \"{name}\" (one of local, s3, gcs, azure)")),
        }
    }

    fn caches(&mut self) {
        if let Some(key) = &self.config.storage.cache.unavailable {
            let why = "is not available in this version of Rubato: caches are in the process and in memcached without TLS";
            self.say("cache.caches", format!("{key} {why}"));
        }
    }

    fn block(&mut self) {
        if let Err(error) = modules::block_settings(&self.config.storage.block) {
            self.say("storage.trace.block.version", format!("storage.trace.block: {error:#}"));
        }
    }

    fn receivers(&mut self) {
        let receivers = &self.config.distributor.receivers;
        // Listening in the clear where encryption or authentication was asked for would be worse than not listening.
        for key in receivers.unused.iter().filter(|key| key.contains(".tls") || key.contains(".auth")) {
            self.say("distributor.receivers", format!("{key} is not available in this version of Rubato: remove it to listen without"));
        }
        // As would be not listening at all without a word.
        for name in &receivers.unavailable {
            self.say("distributor.receivers", format!("distributor.receivers.{name} is not available in this version of Rubato"));
        }
        let asks = self.config.server.auth.asks();
        if asks && !(receivers.jaeger_compact.is_empty() && receivers.jaeger_binary.is_empty()) {
            // Datagrams carry no credentials.
            let why = "Jaeger's thrift_compact and thrift_binary cannot ask for credentials: remove these receivers";
            self.say("distributor.receivers", format!("rubato.auth: {why}"));
        }
    }

    fn compression(&mut self) {
        let key = "ingester_client.grpc_client_config.grpc_compression";
        if let Err(error) = self.config.settings.text(key).parse::<ingest::Compression>() {
            self.say(key, format!("{key}: {error}"));
        }
    }

    fn rings(&mut self) {
        let (config, cluster) = (self.config, &self.config.cluster);
        let rings = Kind::watched(config).into_iter().map(|kind| kind.config(cluster));
        for ring in rings.clone() {
            if let KvStore::Unavailable(name) = &ring.store {
                let why = "is not available: rings are kept in memberlist or inmemory";
                self.say(&ring.store_key, format!("{}: \"{name}\" {why}", ring.store_key));
            }
        }
        if rings.clone().any(|ring| ring.store == KvStore::Memberlist) {
            self.problems.extend(cluster.memberlist.problems.iter().cloned());
        }
        let ingesters = &cluster.ingester;
        let key = &ingesters.store_key;
        match (config.target.as_str(), &ingesters.store) {
            (DISTRIBUTOR, KvStore::Absent) => self.say(key, format!("{key} is empty: a distributor finds ingesters by their ring")),
            (DISTRIBUTOR, KvStore::InMemory) => {
                let why = "\"inmemory\" is a ring of this process alone: a distributor finds ingesters by memberlist";
                self.say(key, format!("{key}: {why}"));
            }
            _ => {}
        }
        let key = &cluster.generator.store_key;
        if config.target == METRICS_GENERATOR && matches!(cluster.generator.store, KvStore::Absent | KvStore::InMemory) {
            self.say(key, format!("{key}: a metrics-generator finds ingesters by memberlist"));
        }
    }

    fn querier(&mut self) {
        let querier = &self.config.querier;
        let needs = |key: &str| format!("the target \"querier\" needs {key}: host:port, several of them separated by commas");
        if querier.workers.frontends.is_empty() {
            let key = "querier.frontend_worker.frontend_address";
            self.say(key, needs(key));
        }
        if querier.ingesters.is_empty() && self.config.cluster.ingester.store == KvStore::Absent {
            let key = "rubato.querier.ingester_address";
            self.say(key, format!("{}, or a ring: ingester.lifecycler.ring.kvstore.store: memberlist", needs(key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// What is said of a file, a line each.
    fn said(text: &str) -> Vec<String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("tempo.yaml");
        std::fs::write(&file, format!("{text}\n")).expect("writable");
        let config = config::load(&config::Request { file: Some(file), ..config::Request::default() }, &|_| None);
        refusals(&config.expect("right keys")).iter().map(ToString::to_string).collect()
    }

    const STORE: &str = "storage: {trace: {backend: local, local: {path: b}, wal: {path: w}}}";

    #[test]
    fn targets() {
        for target in ["all", "scalable-single-binary", "query-frontend", "ingester", "distributor", "compactor"] {
            assert_eq!(said(&format!("{STORE}\ntarget: {target}")), [""; 0], "{target}");
        }
        let roles = "distributor, ingester, metrics-generator, query-frontend, querier, compactor";
        assert_eq!(
            said("target: live-store"),
            [format!("line 1: target \"live-store\" is not available in this version of Rubato: run the target all, or one of {roles}")]
        );
        assert_eq!(said("target: nonsense"), ["line 1: unrecognised module name: nonsense"]);
    }

    #[test]
    fn each_target_refuses_what_concerns_it() {
        let ring = |block: &str, store: &str| format!("{block}: {{ring: {{kvstore: {{store: {store}}}}}}}");
        let ingesters = |store: &str| format!("ingester: {{lifecycler: {{ring: {{kvstore: {{store: {store}}}}}}}}}");
        let unavailable = "\"consul\" is not available: rings are kept in memberlist or inmemory";
        for (target, keys, expected) in [
            ("ingester", ingesters("consul"), &[&format!("ingester.lifecycler.ring.kvstore.store: {unavailable}") as &str][..]),
            ("query-frontend", ingesters("consul"), &[]),
            ("compactor", ring("compactor", "consul"), &[&format!("compactor.ring.kvstore.store: {unavailable}")]),
            ("ingester", ring("compactor", "consul"), &[]),
            (
                "distributor",
                ingesters("inmemory"),
                &[
                    "ingester.lifecycler.ring.kvstore.store: \"inmemory\" is a ring of this process alone: a distributor finds ingesters by memberlist",
                ],
            ),
            (
                "distributor",
                ingesters("''"),
                &["ingester.lifecycler.ring.kvstore.store is empty: a distributor finds ingesters by their ring"],
            ),
            (
                "metrics-generator",
                ring("metrics_generator", "inmemory"),
                &["metrics_generator.ring.kvstore.store: a metrics-generator finds ingesters by memberlist"],
            ),
            ("ingester", "memberlist: {bind_port: 70000}".to_owned(), &["memberlist.bind_port: 70000 is not a port"]),
            ("query-frontend", "memberlist: {bind_port: 70000}".to_owned(), &[]),
            (
                "querier",
                ingesters("''"),
                &[
                    "the target \"querier\" needs rubato.querier.ingester_address: host:port, several of them separated by commas, or a ring: \
                     ingester.lifecycler.ring.kvstore.store: memberlist",
                    "the target \"querier\" needs querier.frontend_worker.frontend_address: host:port, several of them separated by commas",
                ],
            ),
            (
                "distributor",
                "distributor: {receivers: {kafka: , otlp: {protocols: {grpc: {tls: {ca_file: x}}}}}}".to_owned(),
                &[
                    "distributor.receivers.kafka is not available in this version of Rubato",
                    "distributor.receivers.otlp.protocols.grpc.tls.ca_file is not available in this version of Rubato: remove it to listen without",
                ],
            ),
            (
                "all",
                "rubato: {auth: {bearer_tokens_file: t}}\ndistributor: {receivers: {jaeger: {protocols: {thrift_compact: }}}}".to_owned(),
                &["rubato.auth: Jaeger's thrift_compact and thrift_binary cannot ask for credentials: remove these receivers"],
            ),
            (
                "query-frontend",
                "cache: {caches: [{roles: [bloom], redis: {endpoint: x}}]}".to_owned(),
                &[
                    "cache.caches[0].redis is not available in this version of Rubato: caches are in the process and in memcached without TLS",
                ],
            ),
            ("distributor", "cache: {caches: [{roles: [bloom], redis: {endpoint: x}}]}".to_owned(), &[]),
            (
                "all",
                "overrides: {user_configurable_overrides: {enabled: true, client: {backend: local}}}".to_owned(),
                &["overrides.user_configurable_overrides.client.local.path is empty"],
            ),
        ] {
            let mut said = said(&format!("{STORE}\ntarget: {target}\n{keys}"));
            for text in &mut said {
                *text =
                    text.split_once(": ").filter(|(line, _)| line.starts_with("line ")).map_or(text.clone(), |(_, text)| text.to_owned());
            }
            said.sort();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(said, expected, "{target}, {keys}");
        }
        let version = STORE.replace("wal:", "block: {version: v2}, wal:");
        let said = said(&format!("{version}\ntarget: compactor"));
        assert!(said.len() == 1 && said[0].starts_with("line 1: storage.trace.block: "), "{said:?}");
        assert_eq!(self::said(&format!("{version}\ntarget: query-frontend")), [""; 0]);
        assert_eq!(self::said("target: all\nstorage: {trace: {wal: {path: w}}}").len(), 1, "no backend");
    }
}
