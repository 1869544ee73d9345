//! The bucket that a tool works on: named on the command line, or by the server's own configuration.
//!
//! Both become a [`Config`], so a tool opens a bucket exactly as the server does and takes the same keys, files and environment variables
//! for its credentials.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use storage::{
    backend::{self, Store},
    block::Meta,
    clock::SystemClock,
    id::{BlockId, Tenant},
};

use crate::{
    config::{self, Request, parse_flag},
    modules,
};

/// Where the blocks are.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A folder, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, azure://CONTAINER/PREFIX; by default what the configuration says, and without one the folder of
    /// a server without one
    #[arg(long, value_name = "URL")]
    bucket: Option<String>,
    /// Take the bucket, and what else --bucket leaves open, from the server's configuration file
    #[arg(short = 'c', long = "config.file", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Expand environment variables in the configuration file
    #[arg(long = "config.expand-env", requires = "config")]
    expand_env: bool,
    /// Host and port of the S3 server
    #[arg(long, value_name = "HOST")]
    s3_endpoint: Option<String>,
    /// Access key; by default from the configuration or the environment
    #[arg(long, value_name = "KEY")]
    s3_user: Option<String>,
    /// Secret key; by default from the configuration or the environment, where fewer people see it
    #[arg(long, value_name = "SECRET")]
    s3_pass: Option<String>,
    /// Speak HTTP, not HTTPS, to the S3 server
    #[arg(long)]
    s3_insecure: bool,
    /// Only this tenant
    #[arg(long)]
    tenant: Option<String>,
}

/// An opened bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) store: Store,
    /// The tenants that the command is about, sorted.
    pub(crate) tenants: Vec<Tenant>,
    /// How the configuration wants blocks to be written.
    pub(crate) settings: storage::block::Settings,
}

impl Arguments {
    /// Opens the bucket and finds its tenants.
    ///
    /// # Errors
    /// The bucket is not named well, cannot be opened or cannot be listed.
    pub(crate) async fn open(&self) -> anyhow::Result<Bucket> {
        let request = Request { file: self.config.clone(), expand_env: self.expand_env, flags: self.flags()? };
        let env = |name: &str| std::env::var(name).ok();
        let config = config::load(&request, &env).map_err(|error| anyhow::anyhow!("configuration: {error}"))?;
        if let config::Backend::Store(backend::Settings::Local(path)) = &config.storage.backend
            && !path.is_dir()
        {
            bail!("there is no folder {}", path.display());
        }
        let store = modules::open_store(&config, &prometheus::Registry::new(), &SystemClock).await?;
        let tenants = match &self.tenant {
            Some(name) => vec![Tenant::new(name).with_context(|| format!("--tenant {name}"))?],
            None => store.tenants().await.map_err(|error| anyhow::anyhow!(storage::block::chain(&error)))?,
        };
        Ok(Bucket { store, tenants, settings: modules::block_settings(&config.storage.block)? })
    }

    fn flags(&self) -> anyhow::Result<Vec<(&'static str, config::Value)>> {
        let mut flags: Vec<(&'static str, String)> = Vec::new();
        if let Some(url) = &self.bucket {
            let (scheme, rest) = url.split_once("://").unwrap_or(("file", url));
            let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if name.is_empty() && scheme != "file" {
                bail!("--bucket {url}: name the bucket, as in {scheme}://BUCKET/PREFIX");
            }
            let (backend, bucket_key, prefix_key) = match scheme {
                "file" => {
                    flags.extend([("storage.trace.backend", "local".to_owned()), ("storage.trace.local.path", rest.to_owned())]);
                    ("", "", "")
                }
                "s3" => ("s3", "storage.trace.s3.bucket", "storage.trace.s3.prefix"),
                "gs" | "gcs" => ("gcs", "storage.trace.gcs.bucket_name", "storage.trace.gcs.prefix"),
                "azure" | "az" => ("azure", "storage.trace.azure.container_name", "storage.trace.azure.prefix"),
                _ => bail!("--bucket {url}: unknown kind \"{scheme}\": use a folder, s3://, gs:// or azure://"),
            };
            if !backend.is_empty() {
                flags.extend([("storage.trace.backend", backend.to_owned()), (bucket_key, name.to_owned())]);
                flags.push((prefix_key, prefix.trim_end_matches('/').to_owned()));
            }
        }
        for (key, value) in [
            ("storage.trace.s3.endpoint", self.s3_endpoint.clone()),
            ("storage.trace.s3.access_key", self.s3_user.clone()),
            ("storage.trace.s3.secret_key", self.s3_pass.clone()),
            ("storage.trace.s3.insecure", self.s3_insecure.then(|| "true".to_owned())),
        ] {
            flags.extend(value.map(|value| (key, value)));
        }
        flags.into_iter().map(|(key, text)| Ok((key, parse_flag(key, &text).map_err(|why| anyhow::anyhow!("{key}: {why}"))?))).collect()
    }
}

impl Bucket {
    /// The live block whose id is `text` or begins with it, among the command's tenants.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub(crate) async fn block(&self, text: &str) -> anyhow::Result<Meta> {
        let text = text.to_lowercase();
        let exact = BlockId::parse_str(&text).ok();
        let mut found = Vec::new();
        for tenant in &self.tenants {
            match exact {
                Some(id) => found.extend(self.store.meta(tenant, id).await.map_err(chained)?),
                None => {
                    let live = self.store.listing(tenant).await.map_err(chained)?.live;
                    for id in live.into_iter().filter(|id| id.to_string().starts_with(&text)) {
                        found.extend(self.store.meta(tenant, id).await.map_err(chained)?);
                    }
                }
            }
        }
        match (found.pop(), found.first()) {
            (Some(only), None) => Ok(only),
            (Some(one), Some(other)) => bail!("\"{text}\" is not one block: it could be {} or {}", one.block_id, other.block_id),
            (None, _) => bail!("no live block \"{text}\" of {}", self.whose()),
        }
    }

    /// The live blocks of the command's tenants, newest first within a tenant.
    ///
    /// # Errors
    /// The bucket cannot be listed.
    pub(crate) async fn blocks(&self) -> anyhow::Result<Vec<Meta>> {
        let mut blocks = Vec::new();
        for tenant in &self.tenants {
            blocks.extend(self.store.blocks(tenant).await.map_err(chained)?);
        }
        Ok(blocks)
    }

    /// The command's tenants, for a message.
    pub(crate) fn whose(&self) -> String {
        match self.tenants.as_slice() {
            [] => "this bucket, which has no tenants".to_owned(),
            [tenant] => format!("tenant \"{tenant}\""),
            tenants => format!("{} tenants", tenants.len()),
        }
    }
}

/// An error of a library with its causes.
pub(crate) fn chained(error: impl std::error::Error) -> anyhow::Error {
    anyhow::anyhow!(storage::block::chain(&error))
}
