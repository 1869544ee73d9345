//! The language against the conformance corpus.

pub(crate) mod fixture;
mod search;

use std::{fs, path::PathBuf};

use serde::Deserialize;

use super::{ErrorClass, parse};

#[derive(Deserialize)]
struct ParseCase {
    query: String,
    expect: String,
    canonical: Option<String>,
}

/// The folder of the corpus, when it is there.
pub(crate) fn corpus() -> Option<PathBuf> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/conformance/traceql"));
    if folder.is_dir() {
        Some(folder)
    } else {
        eprintln!("skipped: no conformance corpus at {}", folder.display());
        None
    }
}

#[test]
fn every_query_of_the_corpus_parses_or_fails_as_it_should() {
    let Some(folder) = corpus() else {
        return;
    };
    let text = fs::read_to_string(folder.join("parse.json")).expect("parse.json is readable");
    let cases: Vec<ParseCase> = serde_json::from_str(&text).expect("parse.json is JSON");
    assert!(cases.len() > 2_000, "the corpus is complete");
    let mut failures = Vec::new();
    for ParseCase { query, expect, canonical } in cases {
        let result = parse(&query);
        let outcome = match &result {
            Ok(_) => "valid",
            Err(error) => match error.class {
                ErrorClass::Parse => "parse_error",
                ErrorClass::Validation => "validation_error",
                ErrorClass::Unsupported => "unsupported",
            },
        };
        if outcome != expect {
            failures.push(format!("{query}\n    expected {expect}, found {outcome}: {:?}", result.err().map(|error| error.to_string())));
            continue;
        }
        let (Ok(parsed), Some(canonical)) = (result, canonical) else {
            continue;
        };
        if parsed.to_string() != canonical {
            failures.push(format!("{query}\n    expected {canonical}\n    found    {parsed}"));
        }
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}
