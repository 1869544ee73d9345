//! Generates the messages and services of `proto/`, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["frontend/frontend.proto", "rubato/recent.proto", "tempopb/tempopb.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // A client connects as it likes; what is generated only speaks.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .btree_map(".")
        // The same bytes under OpenTelemetry's names.
        .extern_path(".tempopb.Trace", "::opentelemetry_proto::tonic::trace::v1::TracesData")
        .extern_path(".tempopb.trace.v1", "::opentelemetry_proto::tonic::trace::v1")
        .extern_path(".tempopb.common.v1", "::opentelemetry_proto::tonic::common::v1")
        .extern_path(".tempopb.resource.v1", "::opentelemetry_proto::tonic::resource::v1")
        .message_attribute(".tempopb.TagValue", "#[derive(Ord, PartialOrd)]")
        .compile_fds(files)?;
    Ok(())
}
