//! Generates the health service, and for the tests a client of the query API that knows nothing but `query/proto`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=query/proto");
    let files = protox::compile(["health.proto", "tempopb/tempopb.proto"], ["proto", "query/proto"])?;
    tonic_prost_build::configure().emit_rerun_if_changed(false).include_file("protocols.rs").compile_fds(files)?;
    Ok(())
}
