//! Azure Blob Storage (config.md §5.6).

use std::sync::Arc;

use object_store::{
    ObjectStore,
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
};

use super::{
    open::{OpenError, Transport},
    settings::Azure,
};

/// A client for the container.
pub(super) fn client(
    settings: &Azure,
    transport: &Transport,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let missing = |key, why: &str| OpenError::Setting { key, why: why.to_owned() };
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let written = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    if settings.container.is_empty() {
        return Err(missing("azure.container_name", "must not be empty"));
    }
    let account = written(&settings.account)
        .or_else(|| env("AZURE_STORAGE_ACCOUNT"))
        .ok_or_else(|| missing("azure.storage_account_name", "is empty, and so is AZURE_STORAGE_ACCOUNT"))?;
    let key = written(settings.key.reveal()).or_else(|| env("AZURE_STORAGE_KEY"));
    let endpoint = endpoint(&account, &settings.endpoint_suffix);
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(account)
        .with_container_name(&settings.container)
        .with_client_options(transport.options(endpoint.starts_with("http://")))
        .with_endpoint(endpoint)
        .with_retry(transport.no_retries())
        .with_http_connector(transport.http.clone());
    if settings.use_federated_token {
        builder = builder.with_credential_type("workload_identity");
        for (key, variable) in [
            (AzureConfigKey::ClientId, "AZURE_CLIENT_ID"),
            (AzureConfigKey::AuthorityId, "AZURE_TENANT_ID"),
            (AzureConfigKey::FederatedTokenFile, "AZURE_FEDERATED_TOKEN_FILE"),
            (AzureConfigKey::AuthorityHost, "AZURE_AUTHORITY_HOST"),
        ] {
            if let Some(value) = env(variable) {
                builder = builder.with_config(key, value);
            }
        }
        if let Some(client) = written(&settings.user_assigned_id) {
            builder = builder.with_client_id(client);
        }
    } else if settings.use_managed_identity {
        builder = builder.with_credential_type("managed_identity");
        if let Some(client) = written(&settings.user_assigned_id) {
            builder = builder.with_client_id(client);
        }
        if let Some(url) = env("IDENTITY_ENDPOINT") {
            builder = builder.with_msi_endpoint(url);
        }
    } else {
        let key = key.ok_or_else(|| {
            missing(
                "azure.storage_account_key",
                "is empty, so is AZURE_STORAGE_KEY, and neither managed identity nor federated token is used",
            )
        })?;
        builder = builder.with_access_key(key);
    }
    Ok(Arc::new(builder.build()?))
}

/// The account is the first name of the host on Azure, and the first folder of the path on an emulator.
fn endpoint(account: &str, suffix: &str) -> String {
    if suffix.starts_with("blob.") { format!("https://{account}.{suffix}") } else { format!("http://{suffix}/{account}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(endpoint("acc", "blob.core.windows.net"), "https://acc.blob.core.windows.net");
        assert_eq!(endpoint("acc", "blob.core.usgovcloudapi.net"), "https://acc.blob.core.usgovcloudapi.net");
        assert_eq!(endpoint("acc", "azurite:10000"), "http://azurite:10000/acc");
    }
}
