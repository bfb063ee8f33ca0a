//! Takes the elements of some arrays out of a JSON document that arrives in pieces, one at a time.
//!
//! The leading master's list of 10,000 agents has 50 MB and its registry as much again; a few fields
//! of each agent are wanted. So neither the document nor a tree of it is ever in memory. This is no
//! parser: it finds where each element begins and ends, and whoever takes it parses it. What is not
//! wanted is not checked, but that its brackets match in number.

/// The largest element: an agent with hundreds of reservations has some hundred kilobytes.
const ELEMENT_BYTES_MAX: usize = 8 << 20;

/// The longest key that can be part of a path.
const KEY_BYTES_MAX: usize = 64;

/// Why a document is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScanError {
    /// Its outermost value is no object.
    #[error("it is not a JSON object")]
    NoObject,
    /// It ends in the middle, or has brackets that do not match.
    #[error("it ends in the middle")]
    Unfinished,
    /// One element is larger than any should be.
    #[error("one element has more than {ELEMENT_BYTES_MAX} bytes")]
    TooLarge,
}

/// An array that is wanted, by the keys that lead to it.
pub(crate) type Path = &'static [&'static str];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the document.
    Before,
    /// In objects that may lead to a wanted array, as many as there are keys.
    Objects,
    /// In a value that is not wanted, this many brackets deep.
    Skipped(usize),
    /// In a wanted array, between elements.
    Array(usize),
    /// In an element of it, this many brackets deep.
    Element(usize, usize),
    /// Behind the document.
    Behind,
}

/// A document on its way.
#[derive(Debug)]
pub(crate) struct Elements {
    wanted: &'static [Path],
    place: Place,
    /// The key read last in each open object.
    keys: Vec<Vec<u8>>,
    /// Whether the next string of the innermost object is a key.
    key_next: bool,
    in_string: bool,
    escaped: bool,
    element: Vec<u8>,
    /// Of each path, whether its array has come.
    found: Vec<bool>,
}

impl Elements {
    pub(crate) fn new(wanted: &'static [Path]) -> Self {
        Self {
            wanted,
            place: Place::Before,
            keys: Vec::new(),
            key_next: false,
            in_string: false,
            escaped: false,
            element: Vec::new(),
            found: vec![false; wanted.len()],
        }
    }

    /// Takes the next piece. `sink` is given each element that is whole now, with the number of the
    /// path that led to it.
    ///
    /// # Errors
    /// Those of `sink`, and of a document that cannot be what is wanted.
    pub(crate) fn feed<E: From<ScanError>>(
        &mut self,
        piece: &[u8],
        mut sink: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = piece;
        while let Some((&byte, after)) = rest.split_first() {
            if self.in_string {
                rest = self.string(rest);
            } else {
                rest = after;
                if let Some(path) = self.byte(byte)? {
                    sink(path, &self.element)?;
                    self.element.clear();
                }
            }
            if self.element.len() > ELEMENT_BYTES_MAX {
                return Err(ScanError::TooLarge.into());
            }
        }
        Ok(())
    }

    /// The document has come to its end.
    ///
    /// # Errors
    /// [`ScanError::Unfinished`], and [`ScanError::NoObject`] when nothing came.
    pub(crate) fn finish(&self) -> Result<(), ScanError> {
        match self.place {
            Place::Behind => Ok(()),
            Place::Before => Err(ScanError::NoObject),
            _ => Err(ScanError::Unfinished),
        }
    }

    /// Whether the array that a path leads to has come.
    pub(crate) fn found(&self, path: usize) -> bool {
        self.found.get(path).is_some_and(|found| *found)
    }

    /// The rest of a string, as far as it has come; answers what is behind it.
    fn string<'p>(&mut self, piece: &'p [u8]) -> &'p [u8] {
        let mut length = 0;
        for &byte in piece {
            length += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    break;
                }
                _ => {}
            }
        }
        let (part, rest) = piece.split_at(length);
        match self.place {
            Place::Element(..) => self.element.extend_from_slice(part),
            Place::Objects if self.key_next => {
                if let Some(key) = self.keys.last_mut() {
                    // One more, so that a longer key is no other's equal.
                    let room = (KEY_BYTES_MAX + 1).saturating_sub(key.len());
                    let text = if self.in_string { part } else { &part[..length - 1] };
                    key.extend_from_slice(&text[..text.len().min(room)]);
                }
            }
            _ => {}
        }
        rest
    }

    /// A byte outside of strings; answers the path of an element that ends here.
    fn byte(&mut self, byte: u8) -> Result<Option<usize>, ScanError> {
        if byte == b'"' {
            self.in_string = true;
            if self.place == Place::Objects
                && self.key_next
                && let Some(key) = self.keys.last_mut()
            {
                key.clear();
            }
        }
        let (opens, closes) = (matches!(byte, b'{' | b'['), matches!(byte, b'}' | b']'));
        match self.place {
            Place::Before if byte == b'{' => self.open_object(),
            Place::Before | Place::Behind if byte.is_ascii_whitespace() => {}
            Place::Before => return Err(ScanError::NoObject),
            Place::Behind => return Err(ScanError::Unfinished),
            Place::Objects => match byte {
                b'{' if self.keys.len() < self.longest() => self.open_object(),
                _ if opens => {
                    let wanted = self.here().filter(|_| byte == b'[');
                    if let Some(path) = wanted {
                        self.found[path] = true;
                    }
                    self.place = wanted.map_or(Place::Skipped(1), Place::Array);
                }
                b'}' => {
                    self.keys.pop();
                    self.key_next = false;
                    if self.keys.is_empty() {
                        self.place = Place::Behind;
                    }
                }
                b']' => return Err(ScanError::Unfinished),
                b',' => self.key_next = true,
                b':' => self.key_next = false,
                _ => {}
            },
            Place::Skipped(depth) => match depth + usize::from(opens) - usize::from(closes) {
                0 => self.place = Place::Objects,
                depth => self.place = Place::Skipped(depth),
            },
            Place::Array(path) => match byte {
                b']' => self.place = Place::Objects,
                b',' | b' ' | b'\t' | b'\r' | b'\n' => {}
                _ => {
                    self.element.push(byte);
                    self.place = Place::Element(path, usize::from(opens));
                }
            },
            Place::Element(path, depth) => return Ok(self.in_element(path, depth, byte)),
        }
        Ok(None)
    }

    fn in_element(&mut self, path: usize, depth: usize, byte: u8) -> Option<usize> {
        if depth == 0 && matches!(byte, b',' | b']') {
            // A number or a string.
            self.place = if byte == b',' { Place::Array(path) } else { Place::Objects };
            return Some(path);
        }
        self.element.push(byte);
        let depth = match byte {
            b'{' | b'[' => depth + 1,
            b'}' | b']' => depth.saturating_sub(1),
            _ => depth,
        };
        let whole = depth == 0 && matches!(byte, b'}' | b']');
        self.place = if whole { Place::Array(path) } else { Place::Element(path, depth) };
        whole.then_some(path)
    }

    fn open_object(&mut self) {
        self.place = Place::Objects;
        self.keys.push(Vec::new());
        self.key_next = true;
    }

    fn longest(&self) -> usize {
        self.wanted.iter().map(|path| path.len()).max().unwrap_or(0)
    }

    /// The wanted path that the keys lead to.
    fn here(&self) -> Option<usize> {
        let same =
            |path: &Path| path.iter().map(|key| key.as_bytes()).eq(self.keys.iter().map(Vec::as_slice));
        self.wanted.iter().position(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pieces: &[&[u8]], wanted: &'static [Path]) -> Result<Vec<(usize, String)>, ScanError> {
        let mut elements = Elements::new(wanted);
        let mut taken = Vec::new();
        for piece in pieces {
            elements.feed(piece, |path, element| {
                taken.push((path, String::from_utf8(element.to_vec()).unwrap()));
                Ok::<_, ScanError>(())
            })?;
        }
        elements.finish()?;
        Ok(taken)
    }

    const DOCUMENT: &str = r#" {"a":{"b":[{"x":"}]\"","y":[1,{"z":2}]}, {"q":{}} ],"c":[{"no":1}]},"b":[{"no":2}],
        "a\"":{"b":[3]},"s":"[{","w":[{"deep":{"a":{"b":[5]}}}],"l":[7,"t,]",null], "e":[] } "#;
    const WANTED: &[Path] = &[&["a", "b"], &["l"], &["e"]];

    #[test]
    fn wanted_elements_are_taken_and_nothing_else_however_the_document_is_cut() {
        let expected = [
            (0, r#"{"x":"}]\"","y":[1,{"z":2}]}"#),
            (0, r#"{"q":{}}"#),
            (1, "7"),
            (1, r#""t,]""#),
            (1, "null"),
        ];
        let expected: Vec<_> = expected.map(|(path, text)| (path, text.to_owned())).into();
        let bytes = DOCUMENT.as_bytes();
        assert_eq!(take(&[bytes], WANTED).unwrap(), expected);
        for first in 0..bytes.len() {
            let (a, b) = bytes.split_at(first);
            assert_eq!(take(&[a, b], WANTED).unwrap(), expected, "cut at {first}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(take(&single, WANTED).unwrap(), expected);
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let take = |text: &str| take(&[text.as_bytes()], WANTED);
        for text in ["", " ", "<html>", "[1]", "7"] {
            assert_eq!(take(text), Err(ScanError::NoObject), "{text}");
        }
        for text in ["{", r#"{"l":[1"#, r#"{"l":[{"a":1}"#, r#"{"s":""#, r#"{"l":[]}}"#, r#"{"l":1]"#] {
            assert_eq!(take(text), Err(ScanError::Unfinished), "{text}");
        }
        for cut in 2..DOCUMENT.len() - 2 {
            assert!(take(&DOCUMENT[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(take("{}"), Ok(vec![]));
    }

    #[test]
    fn an_element_without_end_is_refused_before_it_fills_the_memory() {
        let mut elements = Elements::new(WANTED);
        let mut sink = |_: usize, _: &[u8]| Ok::<_, ScanError>(());
        elements.feed(br#"{"l":[""#, &mut sink).unwrap();
        let piece = vec![b'x'; 1 << 20];
        let fed = (0..9).try_for_each(|_| elements.feed(&piece, &mut sink));
        assert_eq!(fed, Err(ScanError::TooLarge));
        let mut elements = Elements::new(WANTED);
        elements.feed(br#"{""#, &mut sink).unwrap();
        for _ in 0..9 {
            elements.feed(&piece, &mut sink).unwrap();
        }
        assert!(elements.keys[0].len() <= KEY_BYTES_MAX + 1);
    }
}
