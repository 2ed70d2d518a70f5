use std::os::unix::fs::{chown, symlink};

use super::*;

/// An unprivileged user ID, that of Debian's user 65534.
const OTHER_USER: u32 = 65_534;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Checks that a place is refused in every way to use it, with these words.
#[track_caller]
fn assert_refused(directory: &Path, words: &str) {
    let file = directory.join("lb.lock");
    let errors = [
        check_directory(directory).unwrap_err(),
        check_tree(directory).unwrap_err(),
        create_directory(directory).unwrap_err(),
        create_directory(&directory.join("below")).unwrap_err(),
        create_file(&file).unwrap_err(),
        open_file(&file).unwrap_err(),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(text.starts_with(&directory.display().to_string()), "{text}");
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
}

#[test]
fn directories_and_files_are_private_whatever_the_umask_and_the_mode_before() {
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("sluice/edge");
    create_directory(&directory).unwrap();
    let file = directory.join("lb.lock");
    create_file(&file).unwrap();
    assert_eq!([mode(&directory), mode(&base.path().join("sluice"))], [0o700; 2]);
    assert_eq!(mode(&file), 0o600);
    set_mode(&directory, 0o755);
    set_mode(&file, 0o644);
    create_directory(&directory).unwrap();
    create_file(&file).unwrap();
    assert_eq!((mode(&directory), mode(&file)), (0o700, 0o600));
    assert!(check_tree(&directory).unwrap());
}

#[test]
fn missing_places_are_not_created_by_a_check() {
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("sluice/edge");
    assert!(!check_directory(&directory).unwrap() && !check_tree(&directory).unwrap());
    assert!(open_file(&directory.join("lb.lock")).unwrap().is_none());
    assert_eq!(create_file(&directory.join("x")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!base.path().join("sluice").exists());
}

#[test]
fn a_link_on_the_path_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let target = base.path().join("target");
    fs::create_dir_all(target.join("edge")).unwrap();
    let link = base.path().join("sluice");
    symlink(&target, &link).unwrap();
    assert_refused(&link, "is a symbolic link");
    let error = check_tree(&link.join("edge")).unwrap_err().to_string();
    assert!(error.contains("sluice is a symbolic link"), "{error}");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1, "nothing is created in the target");
}

#[test]
fn a_link_and_a_pipe_in_place_of_a_file_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let target = base.path().join("target");
    fs::write(&target, "").unwrap();
    let (link, pipe) = (base.path().join("link"), base.path().join("pipe"));
    symlink(&target, &link).unwrap();
    nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    for (path, words) in [(&link, "symbolic link"), (&pipe, "not a regular file")] {
        for opened in [create_file(path).map(Some), open_file(path)] {
            let error = opened.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
    let error = check_tree(base.path()).unwrap_err().to_string();
    assert!(error.contains("symbolic link") || error.contains("not a regular"), "{error}");
}

#[test]
fn a_place_that_group_or_others_can_write_is_refused_with_the_chmod_command() {
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("sluice");
    create_directory(&directory).unwrap();
    for mode in [0o720, 0o702, 0o1777] {
        set_mode(&directory, mode);
        let error = check_directory(&directory).unwrap_err().to_string();
        let command = format!("`chmod go-w {}`", directory.display());
        assert!(error.contains(&command) && error.contains(&format!("{mode:04o}")), "{error}");
    }
    set_mode(&directory, 0o777);
    assert_refused(&directory, "mode 0777");
    // A directory above may be writable if it is sticky.
    set_mode(&directory, 0o1777);
    create_directory(&directory.join("edge")).unwrap();
    assert!(check_tree(&directory.join("edge")).unwrap());
    let file = directory.join("edge/lb.lock");
    create_file(&file).unwrap();
    set_mode(&file, 0o620);
    let error = check_tree(&directory.join("edge")).unwrap_err().to_string();
    assert!(error.contains("lb.lock has mode 0620"), "{error}");
}

#[test]
fn a_place_of_another_user_is_refused() {
    if !geteuid().is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("sluice");
    create_directory(&directory).unwrap();
    let file = directory.join("lb.lock");
    create_file(&file).unwrap();
    chown(&file, Some(OTHER_USER), None).unwrap();
    for result in [open_file(&file).map(|_| ()), check_tree(&directory).map(|_| ())] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("lb.lock belongs to user 65534, not to root"), "{error}");
    }
    chown(&directory, Some(OTHER_USER), None).unwrap();
    assert_refused(&directory, "belongs to user 65534, not to root; look at it and remove it");
}
