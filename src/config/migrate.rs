//! Brings a file of Tempo, also an older one, into the form that is documented today.
//!
//! ```text
//!  text ─► document ─► moved keys to where they belong now ─► checked ─► YAML of what differs from the defaults
//!                            └─ remarks: what moved, what was removed, what has no effect here
//! ```
//!
//! A file of Tempo 2.10 needs none of this: it is taken as it is. What was moved or removed in releases before, and limits in the flat form,
//! come out in today's form. Environment variables are not expanded, so the result is a file for all environments that the old one was
//! for. Comments are lost.

use std::path::Path;

use super::{
    LoadError, Mode, Request,
    document::{self, Data, Entry, Node},
    from_document,
    schema::MOVED,
    status,
};

/// A file in today's form.
#[derive(Debug)]
pub(crate) struct Migrated {
    /// The file.
    pub(crate) yaml: String,
    /// What was done to it, and what of it has no effect.
    pub(crate) remarks: Vec<String>,
}

/// Reads a file and brings it into today's form.
///
/// # Errors
/// The file cannot be read, or has problems that are not a matter of its age.
pub(crate) fn migrate(path: &Path) -> Result<Migrated, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|error| LoadError::Read { path: path.to_owned(), why: error.to_string() })?;
    migrate_text(&text).map_err(|problems| LoadError::Parse { path: path.to_owned(), problems })
}

fn migrate_text(text: &str) -> Result<Migrated, Vec<document::Problem>> {
    let mut node = document::parse(text)?;
    let mut remarks = Vec::new();
    if let Some(node) = &mut node {
        for (path, what) in MOVED {
            let names: Vec<&str> = path.split('.').collect();
            let Some(entry) = take(node, &names) else { continue };
            let line = entry.line;
            // `moved to "a" and "b"`: the homes are what is quoted.
            let homes: Vec<&str> = what.strip_prefix("moved to ").map_or(Vec::new(), |homes| homes.split('"').skip(1).step_by(2).collect());
            for home in &homes {
                let home: Vec<&str> = home.split('.').collect();
                put(node, &home, &entry);
            }
            remarks.push(format!("line {line}: {path}: {what}"));
        }
    }
    let request = Request::default();
    let config = from_document(node.as_ref(), &request)?;
    if config.legacy_overrides {
        remarks.push("overrides: the flat form is written as overrides.defaults.<scope>.<key>".to_owned());
    }
    remarks.extend(config.unused_keys().into_iter().map(|key| format!("{key}: has no effect in Rubato")));
    remarks.extend(config.tempo3_keys().into_iter().map(|key| format!("{key}: belongs to Tempo 3.0 and has no effect")));
    Ok(Migrated { yaml: status::render(&config.settings, Mode::File), remarks })
}

/// Takes an entry out of a document.
fn take(node: &mut Node, names: &[&str]) -> Option<Entry> {
    let Data::Map(entries) = &mut node.data else { return None };
    let (name, rest) = names.split_first()?;
    let at = entries.iter().position(|entry| entry.key == *name)?;
    if rest.is_empty() {
        return Some(entries.remove(at));
    }
    take(&mut entries[at].value, rest)
}

/// Puts a value where it belongs now, unless something is there: the newer key counts.
fn put(node: &mut Node, names: &[&str], entry: &Entry) {
    let line = node.line;
    if node.is_null() {
        node.data = Data::Map(Vec::new());
    }
    // A home that is no block is a problem of the file, which the check names.
    let (Data::Map(entries), Some((name, rest))) = (&mut node.data, names.split_first()) else { return };
    let at = entries.iter().position(|there| there.key == *name);
    match (at, rest.is_empty()) {
        (Some(_), true) => {}
        (None, true) => entries.push(Entry { key: (*name).to_owned(), line: entry.line, value: entry.value.clone() }),
        (Some(at), false) => put(&mut entries[at].value, rest, entry),
        (None, false) => {
            let mut block = Node { line, data: Data::Map(Vec::new()) };
            put(&mut block, rest, entry);
            entries.push(Entry { key: (*name).to_owned(), line: entry.line, value: block });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_file_comes_out_in_the_form_of_today() {
        let old = "\
search_enabled: true
query_frontend:
  query_shards: 60
querier:
  query_timeout: 7s
overrides:
  ingestion_rate_limit_bytes: 5
storage:
  trace:
    backend: s3
    s3: {bucket: b, endpoint: e, access_key: k, secret_key: \"${SECRET}\"}
";
        let migrated = migrate_text(old).expect("only its age is wrong");
        assert_eq!(
            migrated.yaml,
            "\
querier:
    search:
        query_timeout: 7s
    trace_by_id:
        query_timeout: 7s
query_frontend:
    trace_by_id:
        query_shards: 60
storage:
    trace:
        backend: s3
        s3:
            bucket: b
            endpoint: e
            access_key: k
            secret_key: \"${SECRET}\"
overrides:
    defaults:
        ingestion:
            rate_limit_bytes: 5
"
        );
        assert!(migrated.remarks.iter().any(|remark| remark.starts_with("line 1: search_enabled: removed")), "{:?}", migrated.remarks);
        assert!(migrated.remarks.iter().any(|remark| remark.contains("flat form")), "{:?}", migrated.remarks);
        // What comes out is taken as it is, and says the same.
        let again = migrate_text(&migrated.yaml).expect("it is a file of today");
        assert_eq!(again.yaml, migrated.yaml);
    }

    #[test]
    fn the_newer_key_counts_and_other_problems_stay() {
        let both = "querier:\n  query_timeout: 7s\n  search: {query_timeout: 9s}\n";
        let migrated = migrate_text(both).expect("a file");
        assert!(migrated.yaml.contains("search:\n        query_timeout: 9s"), "{}", migrated.yaml);
        let problems = migrate_text("search_enabled: true\nserver: {porrt: 1}\n").expect_err("a misspelt key");
        assert_eq!((problems.len(), problems[0].line), (1, 2));
    }
}
