//! Whose data a request asks for.
//!
//! With one tenant, headers are ignored. With several, `X-Scope-OrgID` names one, or many joined by `|`, whose data is then seen as one.
//! What follows a colon in a name is metadata and not part of it.

use http::{HeaderMap, StatusCode};
use storage::id::Tenant;

use super::error::ApiError;

/// The header that names tenants.
pub(crate) const ORG_ID: &str = "x-scope-orgid";

/// How tenants are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenancy {
    /// Whether there is more than one tenant.
    pub(crate) enabled: bool,
    /// Whether a request may ask for several at once.
    pub(crate) federation: bool,
}

impl Tenancy {
    /// The tenants of a request: at least one, sorted, each once.
    pub(crate) fn tenants(self, headers: &HeaderMap) -> Result<Vec<Tenant>, ApiError> {
        if !self.enabled {
            return Ok(vec![Tenant::single()]);
        }
        let value = headers.get(ORG_ID).filter(|value| !value.is_empty());
        let Some(value) = value else {
            return Err(ApiError::early(StatusCode::UNAUTHORIZED, "no org id"));
        };
        let ids = String::from_utf8_lossy(value.as_bytes());
        let mut tenants = Vec::new();
        for id in ids.split('|') {
            let name = id.split_once(':').map_or(id, |(name, _metadata)| name);
            tenants.push(Tenant::new(name).map_err(|invalid| ApiError::bad_request(invalid.to_string()))?);
        }
        tenants.sort();
        tenants.dedup();
        if tenants.len() > 1 && !self.federation {
            return Err(ApiError::bad_request("multiple org IDs present"));
        }
        Ok(tenants)
    }
}

/// The tenants as one label.
pub(crate) fn label(tenants: &[Tenant]) -> String {
    tenants.iter().map(Tenant::as_str).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn tenants(tenancy: Tenancy, header: Option<&str>) -> Result<String, ApiError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(ORG_ID, HeaderValue::from_bytes(value.as_bytes()).expect("header"));
        }
        tenancy.tenants(&headers).map(|tenants| label(&tenants))
    }

    const MANY: Tenancy = Tenancy { enabled: true, federation: true };

    #[test]
    fn one_tenant_needs_no_header() {
        let single = Tenancy { enabled: false, federation: true };
        assert_eq!(tenants(single, Some("a|b/c")), Ok("single-tenant".to_owned()));
        assert_eq!(tenants(single, None), Ok("single-tenant".to_owned()));
    }

    #[test]
    fn names_are_sorted_and_each_once() {
        assert_eq!(tenants(MANY, Some("b|a:env=dev|b")), Ok("a|b".to_owned()));
        assert_eq!(tenants(MANY, Some("a:x=1:y=2|a")), Ok("a".to_owned()));
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "x".repeat(151);
        for (header, text) in [
            ("a|", "no org id"),
            ("|a", "no org id"),
            ("a||b", "no org id"),
            (":k=v", "no org id"),
            ("a/b", "tenant ID 'a/b' contains unsupported character '/'"),
            ("..", "tenant ID is '.' or '..'"),
            (long.as_str(), "tenant ID is too long: max 150 characters"),
        ] {
            assert_eq!(tenants(MANY, Some(header)), Err(ApiError::bad_request(text)), "{header}");
        }
        let missing = Err(ApiError::early(StatusCode::UNAUTHORIZED, "no org id"));
        assert_eq!(tenants(MANY, None), missing);
        assert_eq!(tenants(MANY, Some("")), missing);
        let alone = Tenancy { enabled: true, federation: false };
        assert_eq!(tenants(alone, Some("a|b")), Err(ApiError::bad_request("multiple org IDs present")));
        assert_eq!(tenants(alone, Some("a|a")), Ok("a".to_owned()));
    }
}
