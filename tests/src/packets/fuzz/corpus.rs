//! The corpus: frames in text files, see `tests/corpus/README.md`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::fixtures;
use crate::packets::frames::Frame;

/// File extension.
const EXTENSION: &str = "frames";
/// Bytes per line.
const LINE: usize = 16;

/// Frames that once revealed a fault or are likely to, with the name of their fixture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusEntry {
    /// What the frames test.
    pub comment: String,
    /// The name of the fixture.
    pub fixture: String,
    /// The frames, in sending order.
    pub frames: Vec<Frame>,
}

/// The directory of the corpus.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Every entry of a directory with its file name, sorted. An error contains file and line.
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

/// Writes an entry to a directory, which is created if necessary. Returns the path.
pub fn write(directory: &Path, entry: &CorpusEntry) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let text = entry.to_text();
    // Equal entries have equal names.
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
            // The Ethernet header has its own line, so that the packet stands in rows of 16.
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
                ensure!(fixtures::named(name).is_some(), "{}: unknown fixture", place());
                ensure!(fixture.replace(name.to_owned()).is_none(), "{}: second fixture", place());
            } else if line == "frame" || line.starts_with("frame ") {
                frames.push(metadata(&line["frame".len()..]).with_context(place)?);
            } else if line.starts_with(' ') {
                let Some(Frame { bytes, .. }) = frames.last_mut() else {
                    bail!("{}: bytes before the first frame", place())
                };
                for byte in line.split_whitespace() {
                    ensure!(byte.len() == 2, "{}: {byte} is not a byte of two digits", place());
                    bytes.push(u8::from_str_radix(byte, 16).with_context(place)?);
                }
            } else {
                ensure!(
                    line.is_empty(),
                    "{}: expected a comment, fixture, frame or bytes",
                    place()
                );
            }
        }
        ensure!(
            !comment.is_empty(),
            "the first line must be a comment (#) that states what the frames test"
        );
        ensure!(!frames.is_empty(), "there are no frames");
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

/// A frame without bytes, with the metadata of its line.
fn metadata(words: &str) -> anyhow::Result<Frame> {
    let mut frame = Frame::from(Vec::new());
    for word in words.split_whitespace() {
        match word.split_once('=') {
            Some(("segment-size", number)) => frame.segment_size = number.parse()?,
            Some(("segments", number)) => frame.segments = number.parse()?,
            None if word == "vlan" => frame.vlan = true,
            _ => bail!("{word} is not segment-size=N, segments=N or vlan"),
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
    fn an_error_in_a_file_contains_its_line() {
        let fault = |text: &str| format!("{:#}", text.parse::<CorpusEntry>().unwrap_err());
        assert!(fault("# x\nfixture nowhere\n").contains("line 2"));
        assert!(fault("# x\nfixture default\n  00 11\n").contains("line 3"));
        assert!(fault("# x\nfixture default\nframe tagged\n").contains("line 3"));
        assert!(fault("# x\nfixture default\nframe\n  0\n").contains("line 4"));
        assert!(fault("# x\nfixture default\nframe\n  zz\n").contains("line 4"));
        assert!(fault("# x\nfixture default\nframe\n  00\n").contains("shorter"));
        assert!(fault("fixture default\nframe\n").contains("what the frames test"));
        assert!(fault("# x\nframes\n").contains("line 2"));
    }
}
