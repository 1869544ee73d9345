//! Rubato: one binary, Tempo's command line.
//!
//! `rubato [flags]` runs the process; a first argument that is a known word (`rubato load …`) is a tool. Everything from the flags to the running process is
//! in this package; the crates know nothing of files, flags or the environment.

mod allocator;
mod app;
mod auth;
mod blocks;
mod bucket;
mod client;
mod config;
mod config_tool;
mod flags;
mod generator;
mod grpc;
mod http;
mod listener;
mod load;
mod logging;
mod memberlist;
mod membership;
mod modules;
mod openmetrics;
mod output;
mod own_traces;
mod process;
mod queries;
mod query_tool;
mod receivers;
mod recent;
mod refusals;
mod resources;
mod rings;
mod service_graph;
mod services;
mod tls;
mod trace;
mod usage;
mod user_overrides;
mod write_path;

use std::{io::Write as _, path::Path, process::ExitCode};

use clap::Parser;

/// The tools beside the server.
#[derive(Debug, Parser)]
#[command(name = "rubato", disable_help_subcommand = true)]
enum Tool {
    /// Send realistic traces to an OTLP endpoint, measure, and check what came out.
    Load(load::Command),
    /// Look at the blocks in a bucket, check them, convert them.
    Blocks(blocks::Command),
    /// Show one trace from the blocks of a bucket.
    Trace(trace::Command),
    /// Ask a running server: search, traces, attributes, metrics.
    Query(query_tool::Command),
    /// Look at configuration files: check, print, migrate.
    Config(config_tool::Command),
}

/// Words that are tools; anything else is a flag of the server.
const TOOLS: &[&str] = &["load", "blocks", "trace", "query", "config"];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| TOOLS.contains(&first.as_str())) {
        return run_tool();
    }
    match flags::parse(arguments) {
        Ok(line) => run(&line),
        Err(why) => {
            print_error(&format!("{why}\n{}", flags::usage()));
            ExitCode::from(2)
        }
    }
}

fn run_tool() -> ExitCode {
    let tool = async || match Tool::parse() {
        Tool::Load(command) => load::run(command).await,
        Tool::Blocks(command) => blocks::run(command).await,
        Tool::Trace(command) => trace::run(command).await,
        Tool::Query(command) => query_tool::run(command).await,
        Tool::Config(command) => config_tool::run(command),
    };
    let outcome =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Into::into).and_then(|runtime| runtime.block_on(tool()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("error: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

fn run(line: &flags::CommandLine) -> ExitCode {
    if line.help {
        print(&flags::usage());
        return ExitCode::SUCCESS;
    }
    if line.version {
        print(&process::version_text());
        return ExitCode::SUCCESS;
    }
    if line.health {
        let url = if line.health_url.is_empty() { "http://localhost:3200/ready" } else { &line.health_url };
        return match http::health(url) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print_error(&format!("{error:#}\n"));
                ExitCode::FAILURE
            }
        };
    }
    let env = |name: &str| std::env::var(name).ok();
    let config = match config::load(&line.request, &env) {
        Ok(config) => config,
        Err(error) => {
            print_error(&format!("failed parsing config: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    logging::init(&config.server.log_level, config.server.log_json);
    if line.verify {
        app::log_warnings(&config);
        return if config.warnings().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let machine = std::thread::available_parallelism().map_or(1, usize::from);
    let resources = resources::detect(Path::new("/"), &env, machine, &config);
    let sizes = resources::Sizes::new(&resources, &config);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(sizes.async_threads).thread_name("rubato-async").enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(app::run(config, resources, sizes)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(err = format!("{error:#}"), "error running rubato");
            ExitCode::FAILURE
        }
    }
}

/// Writes to stdout; a reader that has gone away is no error.
fn print(text: &str) {
    _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Writes to stderr.
fn print_error(text: &str) {
    _ = std::io::stderr().lock().write_all(text.as_bytes());
}
