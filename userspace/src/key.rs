//! The hash key: the secret from which the keys of the flow hash and of the lookup tables are
//! derived.
//!
//! All balancers of a fleet need the same key, because otherwise they select different backends for
//! a flow. The key is secret, because otherwise a client could choose source ports that all hash to
//! one backend.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use siphasher::sip128::{Hash128, SipHasher24};

use crate::files::input::{self, UserFile, is_foreign};
use crate::text;

/// Purposes of derived keys. These texts never change, because balancers of different releases in a
/// fleet must derive the same keys.
const FLOW_KEY: &[u8] = b"sluice flow hash 1";
const TABLE_SEED: &[u8] = b"sluice lookup tables 1";
const FINGERPRINT: &[u8] = b"sluice hash key fingerprint 1";

/// Publicly known keys.
const PUBLIC: [[u8; 16]; 4] = [
    // The SipHash paper's test key, 00 01 .. 0f, and its reverse.
    0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f_u128.to_be_bytes(),
    0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100_u128.to_be_bytes(),
    0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes(),
    0xdead_beef_dead_beef_dead_beef_dead_beef_u128.to_be_bytes(),
];

/// Permission bits that a key file must not have: write by group or others, read by others.
const FORBIDDEN_MODE: u32 = 0o026;

/// Longer than 32 digits and a line end, to detect longer files.
const MAX_BYTES: u64 = 64;

/// The hash key: 128 secret bits. Neither `Debug` nor error messages contain them.
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey([u8; 16]);

/// An error about a hash key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file does not exist.
    #[error("{0}: there is no hash key file; make one with `sluice key new --out {0}`, or copy the \
     fleet's", .file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The file could not be opened or read.
    #[error("{}: cannot read the hash key", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path is not a regular file.
    #[error("{}: not a regular file; name a file that holds 32 hexadecimal \
     digits", .file.display())]
    NotAFile {
        /// The path.
        file: PathBuf,
    },
    /// Others can read or write the file.
    #[error("{0}: mode {mode:04o} lets others read or write the hash key; run `chmod 600 {0}`, and \
     make a new key if others may have seen it", .file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another user owns the file.
    #[error("{0}: user {owner} owns the hash key and can read and change it; run `chown root {0}`, \
     and make a new key if that user must not know it", .file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// The user's ID.
        owner: u32,
    },
    /// The file's contents are not a key.
    #[error("{}: not a hash key; the file must hold exactly 32 hexadecimal digits, as \
     `sluice key new` writes them", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
    },
    /// The key is publicly known.
    #[error("{}: this is a publicly known key, with which a client could overload one backend; \
     make another with `sluice key new`", .file.display())]
    Public {
        /// The file.
        file: PathBuf,
    },
    /// The file for a new key exists.
    #[error("{}: exists, and a hash key is never overwritten; name another file, or remove this \
     one first", .file.display())]
    Exists {
        /// The file.
        file: PathBuf,
    },
    /// The new key could not be written.
    #[error("{}: cannot write the hash key", .file.display())]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    NoRandomness(#[source] getrandom::Error),
}

impl KeyError {
    /// Whether the input is wrong, as opposed to a failed operation.
    #[must_use]
    pub const fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Unwritable { .. } | Self::NoRandomness(_))
    }
}

impl HashKey {
    /// Generates a key from the operating system's random source.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(KeyError::NoRandomness)?;
        Ok(Self(bytes))
    }

    /// Loads the key in `file`: 32 hexadecimal digits, the first byte first, and at most one line
    /// end.
    pub fn load(file: &Path) -> Result<Self, KeyError> {
        let named = || file.to_owned();
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KeyError::Missing { file: named() },
            io::ErrorKind::InvalidInput => KeyError::NotAFile { file: named() },
            io::ErrorKind::FileTooLarge => KeyError::Malformed { file: named() },
            _ => KeyError::Unreadable { file: named(), source },
        };
        let UserFile { bytes, metadata } = input::read(file, MAX_BYTES).map_err(unreadable)?;
        if is_foreign(metadata.uid()) {
            return Err(KeyError::Foreign { file: named(), owner: metadata.uid() });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & FORBIDDEN_MODE != 0 {
            return Err(KeyError::Open { file: named(), mode });
        }
        let key = Self::from_hex(&bytes).ok_or_else(|| KeyError::Malformed { file: named() })?;
        if key.is_public() {
            return Err(KeyError::Public { file: named() });
        }
        Ok(key)
    }

    /// Writes the key to `file`, which must not exist, with mode 0600. When this returns, the file
    /// is on the disk; after an error there is no file.
    pub fn save(&self, file: &Path) -> Result<(), KeyError> {
        let unwritable = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { file: file.to_owned() },
            _ => KeyError::Unwritable { file: file.to_owned(), source },
        };
        let mut created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .map_err(unwritable)?;
        self.write_durably(&mut created, file).map_err(|source| {
            // The first error is reported.
            let _ = fs::remove_file(file);
            unwritable(source)
        })
    }

    fn write_durably(&self, created: &mut File, file: &Path) -> io::Result<()> {
        writeln!(created, "{}", self.to_hex())?;
        created.sync_all()?;
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()
    }

    /// The 32 hexadecimal digits of a key file: the secret itself.
    #[must_use]
    pub fn to_hex(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// 16 hexadecimal digits that identify the key without revealing it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        text::digest(self.derive(FINGERPRINT).h1)
    }

    /// The SipHash key of the flow hash: its words k0 and k1, as numbers.
    #[must_use]
    pub fn flow_key(&self) -> [u64; 2] {
        let Hash128 { h1, h2 } = self.derive(FLOW_KEY);
        [h1, h2]
    }

    /// The seed of the lookup tables.
    #[must_use]
    pub fn table_seed(&self) -> [u8; 16] {
        self.derive(TABLE_SEED).as_bytes()
    }

    /// SipHash-2-4-128 under this key. It is a pseudo-random function, so a derived key reveals
    /// nothing about the hash key or about other derived keys.
    fn derive(&self, purpose: &[u8]) -> Hash128 {
        SipHasher24::new_with_key(&self.0).hash(purpose)
    }

    fn from_hex(text: &[u8]) -> Option<Self> {
        let digits = text.strip_suffix(b"\n").unwrap_or(text);
        let digits = digits.strip_suffix(b"\r").unwrap_or(digits);
        // `from_str_radix` alone would accept a sign.
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let number = u128::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        Some(Self(number.to_be_bytes()))
    }

    fn is_public(&self) -> bool {
        let one_byte_repeated = self.0.iter().all(|byte| *byte == self.0[0]);
        one_byte_repeated || PUBLIC.contains(&self.0)
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashKey(fingerprint {})", self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const SOME: &str = "8f1d0a6be2c94735901fd2ab64e7c358";

    fn key_file(contents: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hash.key");
        fs::write(&file, contents).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        (directory, file)
    }

    fn load(contents: &str, mode: u32) -> Result<HashKey, KeyError> {
        let (_directory, file) = key_file(contents, mode);
        HashKey::load(&file)
    }

    #[test]
    fn a_key_is_read_with_and_without_a_line_end_and_in_either_case() {
        let want = HashKey(0x8f1d_0a6b_e2c9_4735_901f_d2ab_64e7_c358_u128.to_be_bytes());
        for text in
            [SOME.to_owned(), format!("{SOME}\n"), format!("{SOME}\r\n"), SOME.to_uppercase()]
        {
            assert_eq!(load(&text, 0o600).unwrap(), want, "{text:?}");
        }
        assert_eq!(want.to_hex(), SOME);
    }

    #[test]
    fn anything_but_32_digits_is_malformed() {
        for text in [
            String::new(),
            "\n".to_owned(),
            SOME[..31].to_owned(),
            format!("{SOME}0"),
            format!("{SOME}\n\n"),
            format!(" {SOME}"),
            format!("+{}", &SOME[1..]),
            format!("0x{}", &SOME[2..]),
            SOME.repeat(100),
        ] {
            let error = load(&text, 0o600).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{text:?}: {error}");
            assert!(error.to_string().contains("exactly 32 hexadecimal digits"));
        }
    }

    #[test]
    fn a_publicly_known_key_is_refused() {
        for text in [
            "00000000000000000000000000000000",
            "ffffffffffffffffffffffffffffffff",
            "000102030405060708090a0b0c0d0e0f",
            "0f0e0d0c0b0a09080706050403020100",
            "0123456789abcdef0123456789abcdef",
            "deadbeefdeadbeefdeadbeefdeadbeef",
        ] {
            let error = load(text, 0o600).unwrap_err();
            assert!(matches!(error, KeyError::Public { .. }), "{text}: {error}");
            assert!(error.to_string().contains("sluice key new"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_write_is_refused_with_the_chmod_command() {
        for mode in [0o644, 0o604, 0o620, 0o602, 0o666] {
            let (_directory, file) = key_file(SOME, mode);
            let error = HashKey::load(&file).unwrap_err().to_string();
            let chmod = format!("`chmod 600 {}`", file.display());
            assert!(error.contains(&chmod) && error.contains(&format!("{mode:04o}")), "{error}");
        }
        for mode in [0o600, 0o400, 0o640, 0o440] {
            assert!(load(SOME, mode).is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn a_file_of_another_user_is_refused_with_the_chown_command() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (_directory, file) = key_file(SOME, 0o600);
        std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
        let error = HashKey::load(&file).unwrap_err();
        assert!(matches!(error, KeyError::Foreign { owner: 65_534, .. }), "{error}");
        let chown = format!("`chown root {}`", file.display());
        assert!(error.is_bad_input() && error.to_string().contains(&chown), "{error}");
    }

    #[test]
    fn the_error_of_a_missing_file_contains_the_command_that_makes_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("none.key");
        let error = HashKey::load(&file).unwrap_err().to_string();
        let command = format!("`sluice key new --out {}`", file.display());
        assert!(error.contains(&command), "{error}");
    }

    #[test]
    fn a_directory_and_a_pipe_are_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [directory.path(), &pipe] {
            let error = HashKey::load(path).unwrap_err();
            assert!(matches!(error, KeyError::NotAFile { .. }), "{error}");
        }
    }

    #[test]
    fn a_saved_key_is_private_loads_again_and_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hash.key");
        let key = HashKey::generate().unwrap();
        key.save(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(HashKey::load(&file).unwrap(), key);

        let error = HashKey::generate().unwrap().save(&file).unwrap_err();
        assert!(matches!(error, KeyError::Exists { .. }) && error.is_bad_input());
        assert_eq!(HashKey::load(&file).unwrap(), key);
    }

    #[test]
    fn a_key_for_a_missing_directory_is_a_failed_operation() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("none/hash.key");
        let error = HashKey::generate().unwrap().save(&file).unwrap_err();
        assert!(matches!(error, KeyError::Unwritable { .. }) && !error.is_bad_input());
    }

    #[test]
    fn generated_keys_differ() {
        assert_ne!(HashKey::generate().unwrap(), HashKey::generate().unwrap());
    }

    #[test]
    fn derived_keys_differ_by_purpose_and_by_hash_key() {
        let one = HashKey::from_hex(SOME.as_bytes()).unwrap();
        let mut near = one.0;
        near[15] ^= 1;
        let near = HashKey(near);
        let bytes = |[k0, k1]: [u64; 2]| [k0.to_le_bytes(), k1.to_le_bytes()].concat();
        assert_ne!(bytes(one.flow_key()), one.table_seed());
        assert_ne!(bytes(one.flow_key()), one.0);
        assert_ne!(one.table_seed(), one.0);
        assert_ne!(one.flow_key(), near.flow_key());
        assert_ne!(one.table_seed(), near.table_seed());
        assert_ne!(one.fingerprint(), near.fingerprint());
    }

    /// The expected values are OpenSSL's:
    /// `printf %s PURPOSE | openssl mac -macopt hexkey:KEY -macopt size:16 -in - SIPHASH`.
    #[test]
    fn derived_keys_never_change() {
        let key = HashKey::from_hex(SOME.as_bytes()).unwrap();
        let flow_key = 0x1e9d_04b8_a8a6_121b_915a_3a20_9512_4ad3_u128.to_be_bytes();
        let words = key.flow_key().map(u64::to_le_bytes).concat();
        assert_eq!(words, flow_key);
        let table_seed = 0x6728_9d7b_728b_4a63_4259_8860_f403_2aa8_u128;
        assert_eq!(key.table_seed(), table_seed.to_be_bytes());
        // The first eight bytes, 3e2c.., as a little-endian number.
        assert_eq!(key.fingerprint(), "9ed6ad0058ba2c3e");
    }

    #[test]
    fn neither_debug_nor_the_fingerprint_shows_the_key() {
        let key = HashKey::from_hex(SOME.as_bytes()).unwrap();
        let shown = format!("{key:?}");
        assert_eq!(shown, format!("HashKey(fingerprint {})", key.fingerprint()));
        // No run of four digits of the key is in it.
        assert!((0..=28).all(|start| !shown.contains(&SOME[start..start + 4])), "{shown}");
        assert_eq!(key.fingerprint().len(), 16);
    }
}
