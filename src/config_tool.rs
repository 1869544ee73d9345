//! `rubato config`: looks at configuration files without starting anything.
//!
//! | command | does |
//! |---|---|
//! | `check` | says everything that is wrong or strange with a file, with lines and hints |
//! | `print` | shows what holds: every key, those that differ from their defaults, or the defaults |
//! | `migrate` | writes the file in the form of today, and says what was done |
//!
//! A file of Tempo 2.10 is taken as it is.

use std::path::PathBuf;

use anyhow::bail;

use crate::{
    config::{self, LoadError, Mode, Overrides},
    output,
    refusals::refusals,
};

/// Look at configuration files: check, print, migrate
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Say what is wrong with a file, with lines and hints; fails if anything is
    Check(Check),
    /// Show the configuration that a file comes to, secrets masked
    Print(Print),
    /// Write a file of Tempo, also an older one, in the form of today; remarks go to the standard error
    Migrate(Migrate),
}

/// What file, and as what.
#[derive(Debug, clap::Args)]
struct Source {
    /// The configuration file
    file: PathBuf,
    /// The target that it is for
    #[arg(long)]
    target: Option<String>,
    /// Expand ${VARIABLES} in the file, as -config.expand-env does
    #[arg(long)]
    expand_env: bool,
}

impl Source {
    fn load(&self) -> Result<config::Config, LoadError> {
        let flags = self.target.iter().map(|target| ("target", config::Value::Text(target.clone()))).collect();
        let request = config::Request { file: Some(self.file.clone()), expand_env: self.expand_env, flags };
        config::load(&request, &|name| std::env::var(name).ok())
    }
}

#[derive(Debug, clap::Args)]
struct Check {
    #[command(flatten)]
    source: Source,
    /// Fail on warnings, too
    #[arg(long)]
    strict: bool,
    /// Print JSON: a list of findings with line, level and message
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Print {
    #[command(flatten)]
    source: Source,
    /// Which keys
    #[arg(long, value_enum, default_value_t = Which::Effective)]
    mode: Which,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Which {
    /// All, with the values that hold
    Effective,
    /// Only those that differ from their defaults
    Diff,
    /// All, with their defaults
    Defaults,
}

#[derive(Debug, clap::Args)]
struct Migrate {
    /// The configuration file
    file: PathBuf,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// The process would not start.
    Error,
    /// Legal, and probably not what was meant.
    Warning,
    /// Good to know.
    Note,
}

#[derive(Debug, serde::Serialize)]
struct Finding {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    level: Level,
    message: String,
}

/// Runs the command.
///
/// # Errors
/// The file cannot be read, or has problems.
pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command.what {
        What::Check(command) => check(&command),
        What::Print(Print { source, mode }) => {
            let mode = match mode {
                Which::Effective => Mode::Effective,
                Which::Diff => Mode::Diff,
                Which::Defaults => Mode::Defaults,
            };
            output::print(&source.load()?.to_yaml(mode));
            Ok(())
        }
        What::Migrate(Migrate { file }) => {
            let migrated = config::migrate(&file)?;
            for remark in &migrated.remarks {
                output::remark(remark);
            }
            output::print(&migrated.yaml);
            Ok(())
        }
    }
}

fn check(command: &Check) -> anyhow::Result<()> {
    let findings = findings(&command.source)?;
    let worst = |level| findings.iter().any(|finding| finding.level == level);
    let (is_wrong, is_strange) = (worst(Level::Error), worst(Level::Warning));
    if command.json {
        output::print_json(&findings)?;
    } else {
        let file = command.source.file.display();
        for Finding { line, level, message } in &findings {
            let level = match level {
                Level::Error => "error",
                Level::Warning => "warning",
                Level::Note => "note",
            };
            let place = line.map_or(String::new(), |line| format!(":{line}"));
            output::print(&format!("{file}{place}: {level}: {message}\n"));
        }
        if !is_wrong {
            output::print(&format!("{file}: ok\n"));
        }
    }
    if is_wrong || (command.strict && is_strange) {
        bail!("{} is not as it should be", command.source.file.display());
    }
    Ok(())
}

/// Everything there is to say of a file and of the file of tenants' limits that it names.
fn findings(source: &Source) -> anyhow::Result<Vec<Finding>> {
    let finding = |problem: config::Problem| Finding {
        line: Some(problem.line).filter(|line| *line > 0),
        level: Level::Error,
        message: problem.text,
    };
    let config = match source.load() {
        Ok(config) => config,
        Err(LoadError::Parse { problems, .. } | LoadError::Invalid(problems)) => return Ok(problems.into_iter().map(finding).collect()),
        Err(error) => return Err(error.into()),
    };
    let mut findings = Vec::new();
    findings.extend(refusals(&config).into_iter().map(finding));
    let mut say = |level, message| findings.push(Finding { line: None, level, message });
    if let Err(error) = Overrides::new(config.overrides.clone(), &prometheus::Registry::new()) {
        say(Level::Error, format!("{error:#}"));
    }
    for warning in config.warnings() {
        say(Level::Warning, format!("{}: {}", warning.message, warning.explain));
    }
    for note in &config.notes {
        say(Level::Note, note.clone());
    }
    for key in config.unused_keys() {
        say(Level::Note, format!("{key} has no effect in Rubato"));
    }
    for key in config.tempo3_keys() {
        say(Level::Note, format!("{key} belongs to Tempo 3.0 and has no effect"));
    }
    Ok(findings)
}
