//! Bytes that claim to be spans in each of the forms that receivers translate: never a panic, and what comes out is a valid OTLP message
//! as far as its wire format goes.

#![no_main]

use std::time::Duration;

use ingest::foreign::Foreign;
use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message as _;

fuzz_target!(|input: &[u8]| {
    let Some((&form, body)) = input.split_first() else { return };
    let form = Foreign::ALL[usize::from(form) % Foreign::ALL.len()];
    match form.to_otlp(body, Duration::from_secs(1), form as u8 % 2 == 0) {
        Ok(request) => drop(TracesData::decode(request).expect("what is translated is OTLP")),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
