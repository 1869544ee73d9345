//! What can be known of the image and of the compose file without building the one or starting the other.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The instructions of the Dockerfile with their words, continued lines joined, comments left out.
fn instructions() -> Vec<(String, Vec<String>)> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next().expect("an instruction"), words.collect())
    };
    lines.map(split).collect()
}

fn compose() -> Value {
    serde_yaml_ng::from_str(&read("compose.yaml")).expect("YAML")
}

#[test]
fn the_image_is_made_of_what_is_there_and_runs_as_nobody() {
    let all = instructions();
    let of = |name: &str| all.iter().filter(|(instruction, _)| instruction == name).map(|(_, words)| words.clone()).collect::<Vec<_>>();
    let stages = of("FROM");
    let [build, runtime] = stages.as_slice() else { panic!("two stages: {stages:?}") };
    assert_eq!(build[1..], ["AS", "build"]);
    let manifest = read("Cargo.toml");
    let rust = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("a version").trim_matches('"');
    assert_eq!(build[0], format!("rust:{rust}-alpine"), "the compiler that the workspace asks for");
    assert!(runtime[0].contains("distroless/static") && runtime[0].ends_with(":nonroot"), "{runtime:?}");

    let run = of("RUN").concat().join(" ");
    assert!(run.contains("cargo build --release --locked --bin rubato"), "{run}");
    assert!(manifest.contains("[[bin]]\nname = \"rubato\"\n"));
    let copied = "cp target/release/rubato /rubato";
    assert!(run.contains(copied), "{run}");
    let mut at_last = BTreeSet::new();
    for words in of("COPY") {
        match words.as_slice() {
            [from, path, to] if from == "--from=build" => {
                assert!(run.ends_with(path.as_str()), "{path} is made by the build");
                at_last.insert(to.clone());
            }
            [path, to] => {
                assert!(root(path).exists(), "{path}");
                at_last.insert(to.clone());
            }
            other => panic!("{other:?}"),
        }
    }
    let entry: Vec<String> = serde_json::from_str(&of("ENTRYPOINT").concat().join(" ")).expect("a list");
    assert!(entry.len() == 1 && at_last.contains(&entry[0]), "{entry:?} of {at_last:?}");
    assert_eq!(of("USER"), [["65532:65532"]]);
    for port in ["3200", "9095", "4317", "4318", "7946", "7947"] {
        assert!(of("EXPOSE").concat().contains(&port.to_owned()), "{port}");
    }
}

#[test]
fn the_build_finds_every_target_of_the_workspace() {
    let ignored = read(".dockerignore");
    let lines: Vec<&str> = ignored.lines().map(str::trim).collect();
    assert_eq!((lines.first(), lines.last()), (Some(&"*"), Some(&"**/target")), "nothing but what follows, and no gigabytes of it");
    let sent: BTreeSet<&str> = lines.iter().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(sent.iter().all(|path| root(path).exists()), "{sent:?}");
    let manifest = read("Cargo.toml");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).expect("a workspace");
    let members: Vec<String> = serde_json::from_str(members).expect("a list");
    // Cargo wants the files of every target that a manifest names, also of those that it does not build.
    let needed = ["Cargo.lock", "Cargo.toml", "LICENSE", "build.rs", "proto", "src", "tests"];
    for path in needed.into_iter().chain(members.iter().map(String::as_str)) {
        assert!(sent.contains(path), "{path}");
    }
}

#[test]
fn the_binary_needs_nothing_that_a_static_one_lacks() {
    // Of C there is what is compiled along: a library of the system would be missing where there is none, and in the build stage.
    let lock = read("Cargo.lock");
    let names = lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix("-sys\""));
    // Of other operating systems, or without C.
    let foreign = ["core-foundation", "jni", "js", "linux-raw", "security-framework", "system-configuration", "web", "windows"];
    let linked: BTreeSet<&str> = names.filter(|name| !foreign.contains(name)).collect();
    assert_eq!(linked, BTreeSet::from(["aws-lc", "libmimalloc", "zstd"]));
    let Ok(output) = Command::new("ldd").arg(env!("CARGO_BIN_EXE_rubato")).output() else {
        eprintln!("skipped: ldd cannot be started");
        return;
    };
    let output = String::from_utf8(output.stdout).expect("text");
    for library in output.lines().filter_map(|line| line.split_whitespace().next()) {
        let name = library.rsplit('/').next().unwrap_or(library);
        let of_c = ["linux-vdso.so", "ld-linux", "libc.so", "libm.so", "libgcc_s.so", "libdl.so", "libpthread.so", "librt.so"];
        assert!(of_c.iter().any(|known| name.starts_with(known)), "{library} of {output}");
    }
}

#[test]
fn compose_mounts_what_is_there_and_the_binary_takes_its_configuration() {
    let compose = compose();
    let services = compose["services"].as_object().expect("services");
    let volumes = compose["volumes"].as_object().expect("volumes");
    for (name, service) in services {
        let image = service["image"].as_str();
        assert!(image.is_some_and(|image| image.contains(':') && !image.ends_with(":latest")) || service["build"] == ".", "{name}");
        for mount in service["volumes"].as_array().into_iter().flatten() {
            let mount = mount.as_str().expect("text");
            let (source, _) = mount.split_once(':').expect("from:to");
            let is_there = if source.starts_with('.') { root(source).exists() } else { volumes.contains_key(source) };
            assert!(is_there, "{name}: {mount}");
        }
        for needed in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains_key(needed.0), "{name} needs {}", needed.0);
        }
    }
    let rubato = &services["rubato"];
    let owner = services["data-owner"]["command"].as_array().expect("words");
    assert!(owner.contains(&Value::from("65532:65532")), "{owner:?}");
    assert_eq!((&rubato["read_only"], &rubato["cap_drop"][0]), (&Value::from(true), &Value::from("ALL")));

    // The file that the command names is the one that is mounted, and good.
    let command = rubato["command"][0].as_str().expect("text");
    let inside = command.strip_prefix("-config.file=").expect("a file");
    let mounts = rubato["volumes"].as_array().expect("mounts").iter().filter_map(Value::as_str);
    let outside = mounts.filter_map(|mount| mount.split_once(':')).find(|(_, to)| to.trim_end_matches(":ro") == inside);
    let (outside, _) = outside.expect("it is mounted");
    let output = Command::new(env!("CARGO_BIN_EXE_rubato")).args(["config", "check", "--strict"]).arg(root(outside)).output();
    let output = output.expect("the binary starts");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

    // What it is told to reach is there under that name.
    let text = read(outside);
    for host in ["prometheus:9090", "memcached:11211", "minio:9000"] {
        let name = host.split(':').next().expect("a name");
        assert!(text.contains(host) && services.contains_key(name), "{host}");
    }
    for (file, needle) in [("k8s/compose/prometheus.yml", "rubato:3200"), ("k8s/compose/datasources.yaml", "http://rubato:3200")] {
        assert!(read(file).contains(needle), "{file}");
    }
    for file in ["k8s/compose/prometheus.yml", "k8s/compose/datasources.yaml", "k8s/compose/dashboards.yaml"] {
        serde_yaml_ng::from_str::<Value>(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}
