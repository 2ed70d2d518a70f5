//! The command line: exit codes, and the use of standard output and standard error.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const EXAMPLE: &str = include_str!("../../docs/examples/edge.json");

fn sluice(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(args).current_dir(directory).output().unwrap()
}

/// A directory with the example configuration and its key file.
fn example_directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let text = EXAMPLE.replace("/etc/sluice/hash.key", "hash.key");
    fs::write(directory.path().join("edge.json"), text).unwrap();
    let made = sluice(directory.path(), &["key", "new", "--out", "hash.key"]);
    assert!(made.status.success(), "{made:?}");
    directory
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.starts_with("sluice: error: "), "{stderr}");
    for words in words {
        assert!(stderr.contains(words), "{words:?} is not in: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn check_prints_a_summary_of_a_valid_configuration() {
    let directory = example_directory();
    let output = sluice(directory.path(), &["check", "edge.json"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    for words in [
        "edge.json: good",
        "2 of at most 256",
        "5 of at most 1024",
        "1 draining",
        "131074 slots, 513 KiB",
        "fingerprint",
    ] {
        assert!(stdout.contains(words), "{words:?} is not in: {stdout}");
    }
}

#[test]
fn check_never_prints_the_hash_key() {
    let directory = example_directory();
    let key = fs::read_to_string(directory.path().join("hash.key")).unwrap();
    let output = sluice(directory.path(), &["check", "edge.json"]);
    assert!(!String::from_utf8(output.stdout).unwrap().contains(key.trim()));
}

#[test]
fn an_invalid_value_is_exit_code_2_with_file_path_and_remedy_on_one_line() {
    let directory = example_directory();
    let text = EXAMPLE.replace("\"weight\": 50", "\"weight\": 65536");
    fs::write(directory.path().join("edge.json"), text).unwrap();
    let output = sluice(directory.path(), &["check", "edge.json"]);
    assert_fails(&output, 2, &["edge.json: services[0].backends[1].weight:", "from 0 to 65535"]);
    assert_eq!(output.stderr.iter().filter(|byte| **byte == b'\n').count(), 1);
}

#[test]
fn a_missing_configuration_is_exit_code_2() {
    let directory = tempfile::tempdir().unwrap();
    assert_fails(
        &sluice(directory.path(), &["check", "none.json"]),
        2,
        &["none.json: cannot read it"],
    );
}

#[test]
fn a_missing_key_file_is_exit_code_2_with_the_command_that_creates_it() {
    let directory = example_directory();
    fs::remove_file(directory.path().join("hash.key")).unwrap();
    assert_fails(
        &sluice(directory.path(), &["check", "edge.json"]),
        2,
        &["`sluice key new --out hash.key`"],
    );
}

#[test]
fn a_world_readable_key_file_is_exit_code_2_with_the_chmod_command() {
    let directory = example_directory();
    let key = directory.path().join("hash.key");
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_fails(&sluice(directory.path(), &["check", "edge.json"]), 2, &["`chmod 600 hash.key`"]);
}

#[test]
fn check_warns_of_files_that_other_users_can_change() {
    let directory = example_directory();
    let deny = directory.path().join("deny.txt");
    fs::write(&deny, "192.0.2.0/24\n").unwrap();
    let config = directory.path().join("edge.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen('{', "{ \"deny_file\": \"deny.txt\",", 1)).unwrap();
    for file in [&config, &deny] {
        let set_mode = |mode| fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
        set_mode(0o666);
        let output = sluice(directory.path(), &["check", "edge.json"]);
        assert!(output.status.success(), "{output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(
            stderr.contains("WARN other users can change this file: mode 0666")
                && stderr.contains(&format!("`chmod o-w {name}`")),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        set_mode(0o644);
    }
    // Others can replace the file.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let output = sluice(directory.path(), &["check", "edge.json"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let remedy = "mode 0777 lets every user write; run `chmod o-w .`";
    assert!(stderr.contains(remedy), "{stderr}");
}

#[test]
fn check_of_a_pipe_or_a_device_fails_at_once() {
    let directory = example_directory();
    let config = directory.path().join("edge.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen('{', "{ \"deny_file\": \"deny.txt\",", 1)).unwrap();
    let make_pipe = |path: &Path| {
        let _ = fs::remove_file(path);
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    };
    let check = |file: &str| sluice(directory.path(), &["check", file]);
    for name in ["deny.txt", "hash.key", "edge.json"] {
        make_pipe(&directory.path().join(name));
        assert_fails(&check("edge.json"), 2, &[name, "not a regular file; name a"]);
    }
    for device in ["/dev/zero", "/dev/tty", "."] {
        assert_fails(&check(device), 2, &["not a regular file; name a JSON file"]);
    }
}

#[test]
fn a_huge_value_is_shortened() {
    let directory = example_directory();
    let huge = "x".repeat(4 << 20);
    let deny = directory.path().join("deny.txt");
    fs::write(&deny, &huge).unwrap();
    let text = fs::read_to_string(directory.path().join("edge.json")).unwrap();
    for (old, new, words) in [
        ("\"version\": 1", format!("\"version\": \"{huge}\""), "write \"version\": 1"),
        ("\"instance\": \"edge\"", format!("\"instance\": \"{huge}\""), "use 1 to 32 characters"),
        ("\"version\": 1", format!("\"version\": 1, \"{huge}\": 1"), "unknown field"),
        ("\"version\": 1", format!("\"version\": 1, \"backends\": \"{huge}\""), "invalid type"),
        (
            "\"version\": 1",
            "\"version\": 1, \"deny_file\": \"deny.txt\"".to_owned(),
            "deny.txt:1: ",
        ),
    ] {
        assert!(text.contains(old), "{text}");
        fs::write(directory.path().join("huge.json"), text.replacen(old, &new, 1)).unwrap();
        let output = sluice(directory.path(), &["check", "huge.json"]);
        assert_fails(&output, 2, &[words, "bytes left out"]);
        assert!(output.stderr.len() < 3_000, "{} bytes", output.stderr.len());
    }
}

#[test]
fn control_characters_are_escaped_wherever_they_are_printed() {
    let directory = example_directory();
    let name = "\u{1b}[31m\nedge\u{202e}.json";
    fs::rename(directory.path().join("hash.key"), directory.path().join("\u{1b}key")).unwrap();
    let text = EXAMPLE.replace("/etc/sluice/hash.key", "\\u001bkey");
    let config = directory.path().join(name);
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o666)).unwrap();
    for (args, code) in [
        (&["check", name][..], 0),
        (&["check", "\u{1b}none"], 2),
        (&["key", "new", "--out", "\u{1b}new"], 0),
        (&["key", "new", "--out", "\u{1b}new"], 2),
        (&["\u{202e}balance"], 2),
        (&["down", "--instance", "\u{1b}"], 2),
    ] {
        let output = sluice(directory.path(), args);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(printed.contains("\\u{1b}") || code == 2, "{args:?}: {printed}");
        let is_harmful = |c: char| c == '\u{202e}' || c.is_control() && c != '\n';
        assert!(!printed.contains(is_harmful), "{args:?}: {printed:?}");
    }
}

#[test]
fn an_existing_key_file_is_never_overwritten() {
    let directory = example_directory();
    let file = directory.path().join("hash.key");
    let before = fs::read(&file).unwrap();
    assert_fails(
        &sluice(directory.path(), &["key", "new", "--out", "hash.key"]),
        2,
        &["hash.key: exists"],
    );
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn an_unwritable_key_file_is_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    assert_fails(
        &sluice(directory.path(), &["key", "new", "--out", "none/hash.key"]),
        1,
        &["cannot write the hash key: No such file"],
    );
}

#[test]
fn a_key_without_a_file_goes_to_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    let output = sluice(directory.path(), &["key", "new"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let digits = text.strip_suffix('\n').unwrap();
    assert!(digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{text:?}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let directory = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 7] = [
        &[],
        &["balance"],
        &["lb"],
        &["check"],
        &["check", "a", "b"],
        &["down", "--instance", "../etc"],
        &["lb", "--config", "f", "--interface", "a/b"],
    ];
    for args in cases {
        let output = sluice(directory.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(
            output.stderr.starts_with(b"sluice: ") && output.stdout.is_empty(),
            "{args:?}: {output:?}"
        );
    }
}

#[test]
fn version_and_help_go_to_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    let version = sluice(directory.path(), &["-V"]);
    assert_eq!(version.stdout, format!("sluice {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
    let version = String::from_utf8(sluice(directory.path(), &["--version"]).stdout).unwrap();
    assert!(
        version.contains("BPF programs built by ") && version.lines().count() == 2,
        "{version}"
    );
    for args in [["--version"], ["--help"]] {
        let output = sluice(directory.path(), &args);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn a_log_filter_that_is_not_valid_is_a_warning() {
    let directory = example_directory();
    let check = |filter: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["check", "edge.json"])
            .env("SLUICE_LOG", filter)
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(check("sluice=warn"), "");
    for filter in ["verbose", "sluice=loud"] {
        let log = check(filter);
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("WARN SLUICE_LOG is not a level (error, warn, info"), "{log}");
        assert!(log.contains(&format!("{filter:?}; the level is info")), "{log}");
    }
}
