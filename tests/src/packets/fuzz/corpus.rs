//! Frames worth keeping, in files that people read: `tests/corpus/README.md` describes them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::fixtures;
use crate::packets::frames::Frame;

/// What a file ends in.
const EXTENSION: &str = "frames";
/// Bytes in a line.
const LINE: usize = 16;

/// Frames that were once wrong, or that are likely to be, and the fixture in which they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusEntry {
    /// What the frames show.
    pub comment: String,
    /// The name of the fixture.
    pub fixture: String,
    /// The frames, in the order in which they come.
    pub frames: Vec<Frame>,
}

/// Where the corpus is kept.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Every entry of a directory by its file name, sorted.
///
/// # Errors
///
/// The file that cannot be read, and its line.
pub fn read(directory: &Path) -> anyhow::Result<Vec<(String, CorpusEntry)>> {
    let mut entries = Vec::new();
    for file in std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
    {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let entry = text.parse().with_context(|| path.display().to_string())?;
        entries.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), entry));
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(entries)
}

/// Writes an entry into a directory that need not exist; where it is.
///
/// # Errors
///
/// That it cannot be written.
pub fn write(directory: &Path, entry: &CorpusEntry) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let text = entry.to_text();
    // The same frames get the same name.
    let digest = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = directory.join(format!("found-{digest:016x}.{EXTENSION}"));
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

impl CorpusEntry {
    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for line in self.comment.lines() {
            text += &format!("# {line}\n");
        }
        text += &format!("fixture {}\n", self.fixture);
        for frame in &self.frames {
            text += "frame";
            if frame.segment_size != 0 {
                let _ = write!(text, " segment-size={}", frame.segment_size);
            }
            if frame.segments != 0 {
                let _ = write!(text, " segments={}", frame.segments);
            }
            if frame.vlan {
                text += " vlan";
            }
            text.push('\n');
            // The Ethernet header by itself, so that what is behind it stands in rows of 16.
            let (ethernet, packet) = frame.bytes.split_at(frame.bytes.len().min(14));
            for row in [ethernet].into_iter().chain(packet.chunks(LINE)) {
                text.push(' ');
                for byte in row {
                    let _ = write!(text, " {byte:02x}");
                }
                text.push('\n');
            }
        }
        text
    }
}

impl std::str::FromStr for CorpusEntry {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (mut comment, mut fixture, mut frames) = (Vec::new(), None, Vec::new());
        for (number, line) in (1..).zip(text.lines()) {
            let place = || format!("line {number}: {line}");
            if let Some(words) = line.strip_prefix('#') {
                comment.push(words.trim().to_owned());
            } else if let Some(name) = line.strip_prefix("fixture ") {
                ensure!(fixtures::named(name).is_some(), "{}: there is no such fixture", place());
                ensure!(
                    fixture.replace(name.to_owned()).is_none(),
                    "{}: a second fixture",
                    place()
                );
            } else if line == "frame" || line.starts_with("frame ") {
                frames.push(beside(&line["frame".len()..]).with_context(place)?);
            } else if line.starts_with(' ') {
                let Some(Frame { bytes, .. }) = frames.last_mut() else {
                    bail!("{}: bytes before a frame", place())
                };
                for byte in line.split_whitespace() {
                    ensure!(byte.len() == 2, "{}: {byte} is no byte of two digits", place());
                    bytes.push(u8::from_str_radix(byte, 16).with_context(place)?);
                }
            } else {
                ensure!(
                    line.is_empty(),
                    "{}: neither a comment, a fixture, a frame nor bytes",
                    place()
                );
            }
        }
        ensure!(!comment.is_empty(), "the first line should say what the frames show, behind a #");
        ensure!(!frames.is_empty(), "there is no frame");
        ensure!(
            frames.iter().all(|frame| frame.bytes.len() >= 14),
            "a frame is shorter than an Ethernet header"
        );
        Ok(Self {
            comment: comment.join("\n"),
            fixture: fixture.context("there is no fixture")?,
            frames,
        })
    }
}

/// A frame without bytes, and what stands beside them.
fn beside(words: &str) -> anyhow::Result<Frame> {
    let mut frame = Frame::from(Vec::new());
    for word in words.split_whitespace() {
        match word.split_once('=') {
            Some(("segment-size", number)) => frame.segment_size = number.parse()?,
            Some(("segments", number)) => frame.segments = number.parse()?,
            None if word == "vlan" => frame.vlan = true,
            _ => bail!("{word} is none of segment-size=N, segments=N, vlan"),
        }
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::fuzz::Generator;

    #[test]
    fn an_entry_survives_the_round_trip() {
        let mut generator = Generator::new(3);
        for _ in 0..500 {
            let frames = vec![generator.frame(), generator.frame()];
            let entry = CorpusEntry {
                comment: "What it is.\nAnd why.".to_owned(),
                fixture: "tracked".to_owned(),
                frames,
            };
            assert_eq!(entry.to_text().parse::<CorpusEntry>().unwrap(), entry);
        }
    }

    #[test]
    fn a_fault_in_a_file_is_named_with_its_line() {
        let fault = |text: &str| format!("{:#}", text.parse::<CorpusEntry>().unwrap_err());
        assert!(fault("# x\nfixture nowhere\n").contains("line 2"));
        assert!(fault("# x\nfixture default\n  00 11\n").contains("line 3"));
        assert!(fault("# x\nfixture default\nframe tagged\n").contains("line 3"));
        assert!(fault("# x\nfixture default\nframe\n  0\n").contains("line 4"));
        assert!(fault("# x\nfixture default\nframe\n  zz\n").contains("line 4"));
        assert!(fault("# x\nfixture default\nframe\n  00\n").contains("shorter"));
        assert!(fault("fixture default\nframe\n").contains("what the frames show"));
        assert!(fault("# x\nframes\n").contains("line 2"));
    }
}
