//! Any text: the parser answers without panic, its errors point into the text, and what it accepts prints and evaluates.

#![no_main]

use libfuzzer_sys::fuzz_target;
use query::traceql::{self, EvaluateOptions, TraceView};
use storage::block::Trace;

fuzz_target!(|text: &str| {
    let _ = traceql::tag_filter(text);
    match traceql::parse(text) {
        Ok(query) => {
            let printed = query.to_string();
            assert!(!printed.is_empty());
            let _ = query.projection();
            let trace = Trace::default();
            let answer = query.evaluate(&TraceView::new(&trace), EvaluateOptions { spans_per_spanset: 3 });
            assert_eq!(answer, Ok(None), "a trace without spans matches nothing");
        }
        Err(error) => {
            let lines = text.split('\n').count();
            assert!(error.at.line >= 1 && error.at.line as usize <= lines, "{error}");
        }
    }
});
