//! Which tenant a request belongs to: the value of `X-Scope-OrgID`, in HTTP headers and in gRPC metadata alike.

use http::HeaderMap;
use storage::id::{InvalidTenant, Tenant};

/// The header, as HTTP/2 and gRPC spell it.
pub const ORG_ID_HEADER: &str = "x-scope-orgid";

/// Why a request has no tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    /// Not exactly one header. In the reference a plain error, that clients see as Unavailable.
    #[error("no org id")]
    Absent,
    /// Several names, joined by `|`, that differ.
    #[error("multiple org IDs present")]
    Multiple,
    /// A name that breaks a rule.
    #[error(transparent)]
    Invalid(#[from] InvalidTenant),
}

/// The tenant of a request with these headers. Without `multitenancy` it is always `single-tenant`.
///
/// # Errors
/// See [`TenantError`].
pub fn extract(headers: &HeaderMap, multitenancy: bool) -> Result<Tenant, TenantError> {
    if !multitenancy {
        return Ok(Tenant::single());
    }
    let mut values = headers.get_all(ORG_ID_HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(TenantError::Absent);
    };
    parse(&String::from_utf8_lossy(value.as_bytes()))
}

/// Reads a header value: parts between `|` must name the same tenant, what follows a `:` in a part is metadata.
///
/// # Errors
/// See [`TenantError`].
pub fn parse(value: &str) -> Result<Tenant, TenantError> {
    let mut names = value.split('|').map(|part| part.split_once(':').map_or(part, |(name, _)| name));
    let first = names.next().unwrap_or_default();
    if names.any(|name| name != first) {
        return Err(TenantError::Multiple);
    }
    Ok(Tenant::new(first)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn values_are_read_as_the_reference_does() {
        let check = |value: &str, expected: Result<&str, &str>| {
            let got = parse(value).map(|t| t.as_str().to_owned()).map_err(|e| e.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "{value}");
        };
        check("a", Ok("a"));
        check("a|a", Ok("a"));
        check("a:k=v|a", Ok("a"));
        check("a|b", Err("multiple org IDs present"));
        check("", Err("no org id"));
        check(":x", Err("no org id"));
        check("a/b", Err("tenant ID 'a/b' contains unsupported character '/'"));
    }

    #[test]
    fn exactly_one_header_counts() {
        let mut headers = HeaderMap::new();
        assert_eq!(extract(&headers, false), Ok(Tenant::single()));
        assert_eq!(extract(&headers, true), Err(TenantError::Absent));
        headers.append(ORG_ID_HEADER, HeaderValue::from_static("a"));
        assert_eq!(extract(&headers, true).map(String::from), Ok("a".to_owned()));
        headers.append(ORG_ID_HEADER, HeaderValue::from_static("a"));
        assert_eq!(extract(&headers, true), Err(TenantError::Absent));
    }
}
