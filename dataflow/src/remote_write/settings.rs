//! What may be tuned of remote write. Plain data; the binary fills it from the configuration.

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf, sync::Arc, time::Duration};

use storage::{backend::Secret, id::Tenant};

use super::{protocol::Protocol, relabel::Rule};

/// Settings of remote write, and of the registry whose series it sends.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where samples go; each endpoint gets all of them, independently of the others.
    pub endpoints: Vec<Endpoint>,
    /// How often series are collected, where a tenant's limit says nothing.
    pub collection_interval: Duration,
    /// Labels of every series; they replace labels of the same name.
    pub external_labels: BTreeMap<String, String>,
    /// The label that receives the tenant; none: no label does.
    pub tenant_label: Option<String>,
    /// The value of the label `__metrics_gen_instance`.
    pub instance: String,
    /// Whether requests name their tenant in `X-Scope-OrgID`.
    pub add_org_id_header: bool,
    /// How long samples that wait may be sent before the process ends.
    pub flush_deadline: Duration,
    /// The header `User-Agent`.
    pub user_agent: String,
    /// Seed of the jitter between attempts.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            collection_interval: Duration::from_secs(15),
            external_labels: BTreeMap::new(),
            tenant_label: None,
            instance: "localhost".to_owned(),
            add_org_id_header: false,
            flush_deadline: Duration::from_secs(60),
            user_agent: "Rubato".to_owned(),
            seed: 0,
        }
    }
}

/// An endpoint: an entry of `remote_write`.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// The whole URL, such as `http://mimir:8080/api/v1/push`.
    pub url: String,
    /// The label `remote_name` of metrics; empty: six digits of a hash of the URL.
    pub name: String,
    /// A request that takes longer has failed.
    pub timeout: Duration,
    /// Headers of every request.
    pub headers: BTreeMap<String, String>,
    /// Rules that labels go through.
    pub relabel: Vec<Rule>,
    /// The protocol to begin with.
    pub protocol: Protocol,
    /// Who we are.
    pub auth: Auth,
    /// How to trust and be trusted.
    pub tls: Tls,
    /// What requests go through.
    pub proxy: Proxy,
    /// Whether redirections are followed.
    pub follow_redirects: bool,
    /// Batches, attempts and what may wait.
    pub queue: Queue,
    /// How often the receiver is told what metrics are; none: never. Protocol 2.0 tells it with every series.
    pub metadata_interval: Option<Duration>,
}

impl Endpoint {
    /// An endpoint with defaults.
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            name: String::new(),
            timeout: Duration::from_secs(30),
            headers: BTreeMap::new(),
            relabel: Vec::new(),
            protocol: Protocol::V1,
            auth: Auth::None,
            tls: Tls::default(),
            proxy: Proxy::None,
            follow_redirects: true,
            queue: Queue::default(),
            metadata_interval: Some(Duration::from_secs(60)),
        }
    }
}

/// A secret, or the file that holds it; the file is read again for every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// The text.
    Text(Secret),
    /// The file; blanks around its content don't count.
    File(PathBuf),
}

/// How a request authenticates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    None,
    /// HTTP basic authentication.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Credentials,
    },
    /// `Authorization: <scheme> <credentials>`.
    Header {
        /// Such as `Bearer`.
        scheme: String,
        /// What follows it.
        credentials: Credentials,
    },
}

/// PEM, or the file that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pem {
    /// The text.
    Text(Secret),
    /// The file, read when the endpoint is set up.
    File(PathBuf),
}

/// Versions of TLS that may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

/// TLS of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Authorities to trust instead of the system's.
    pub ca: Option<Pem>,
    /// Our certificate and its key.
    pub identity: Option<(Pem, Pem)>,
    /// Whether certificates of receivers are not verified.
    pub insecure_skip_verify: bool,
    /// The oldest version.
    pub min_version: Option<TlsVersion>,
    /// The newest version.
    pub max_version: Option<TlsVersion>,
}

/// What requests go through on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// Nothing.
    None,
    /// What `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say.
    Environment,
    /// A proxy.
    Url {
        /// Where it is.
        url: String,
        /// Hosts that are reached without it, separated by commas.
        except: String,
    },
}

/// `queue_config` of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Samples that may wait in a shard.
    pub capacity: usize,
    /// Shards at most: requests of a tenant under way at the same time.
    pub max_shards: usize,
    /// Samples of a request at most.
    pub max_samples_per_send: usize,
    /// Pause before the second attempt; each further one is twice as long.
    pub min_backoff: Duration,
    /// The longest such pause.
    pub max_backoff: Duration,
    /// Whether requests answered by 429 are tried again.
    pub retry_on_429: bool,
    /// Samples older than this are not sent any more; none: all are.
    pub sample_age_limit: Option<Duration>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            capacity: 10_000,
            max_shards: 50,
            max_samples_per_send: 2_000,
            min_backoff: Duration::from_millis(30),
            max_backoff: Duration::from_secs(5),
            retry_on_429: true,
            sample_age_limit: None,
        }
    }
}

/// What holds for a tenant; it may change at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantSettings {
    /// How often its series are collected; none: as often as everybody's.
    pub collection_interval: Option<Duration>,
    /// Nothing is sent; series are kept all the same.
    pub disable_collection: bool,
    /// The label of exemplars that holds the trace id.
    pub trace_id_label: String,
    /// The name of the metric of hosts.
    pub host_info_metric: String,
    /// Buckets of a native histogram at most: one that has more is sent with wider buckets. 0 is no limit.
    pub native_histogram_max_buckets: usize,
    /// Headers over those of the endpoint.
    pub headers: BTreeMap<String, String>,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            collection_interval: None,
            disable_collection: false,
            trace_id_label: "traceID".to_owned(),
            host_info_metric: "traces_host_info".to_owned(),
            native_histogram_max_buckets: 100,
            headers: BTreeMap::new(),
        }
    }
}

/// Says what holds for a tenant. Asked before every collection and every request.
pub trait Overrides: Debug + Send + Sync + 'static {
    /// The settings of a tenant, now.
    fn remote_write(&self, tenant: &Tenant) -> Arc<TenantSettings>;
}
