//! Reading a file again and again, at the cost of what has changed in it.
//!
//! Owns where a file may be cut. Large files are large by their services, each of which begins with a line
//! `[[service]]` and ends before the next header of something else. One whose text is as before is neither
//! parsed nor checked again, but for the rules between it and the rest of the file.
//!
//! Each service by itself and the rest of the file are documents as [`super::parse`] reads them. If all of
//! them are without a fault, and define nothing that is another's, then they are together what the whole file
//! is: in TOML a header begins at the root again, wherever it stands. That a text was cut where it may not be,
//! such as within a string of several lines, makes a fault in the document before the cut. With any fault the
//! whole file is read, whose messages the operator gets.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::de::DeTable;
use xxhash_rust::xxh64::xxh64;

use super::place::At;
use super::report::{Pieces, Report};
use super::{protection, raw, validate, Error, Loaded};

/// Reads one file, and remembers its services.
#[derive(Default)]
pub struct Reader {
    /// By the hash of its text.
    services: HashMap<u64, Arc<Known>>,
}

/// A service without a fault of its own.
struct Known {
    text: Box<str>,
    service: Arc<raw::Service>,
    /// Places are in `text`.
    warnings: Vec<At<String>>,
}

impl Reader {
    /// As [`super::load`].
    ///
    /// # Errors
    ///
    /// Likewise.
    pub fn load(&mut self, path: &Path) -> Result<Loaded, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::read(path, source))?;
        let text =
            std::str::from_utf8(&bytes).map_err(|error| Error::not_utf8(path, &bytes, error))?;
        self.parse(text, path)
    }

    /// As [`super::parse`].
    ///
    /// # Errors
    ///
    /// Likewise.
    pub fn parse(&mut self, text: &str, file: &Path) -> Result<Loaded, Error> {
        match self.parse_cut(text, file) {
            Some(loaded) => Ok(loaded),
            None => super::parse(text, file),
        }
    }

    /// `None`: something is at fault, or it cannot be told from documents by themselves.
    fn parse_cut(&mut self, text: &str, file: &Path) -> Option<Loaded> {
        let cut = Cut::of(text);
        let mut report = Report::of_pieces(text, file, cut.pieces);
        let document = DeTable::parse(&cut.rest).ok()?;
        if document.get_ref().contains_key("service") {
            return None;
        }
        let mut raw = raw::read(document.get_ref(), &mut report);
        let mut services = HashMap::with_capacity(cut.services.len());
        for range in cut.services {
            let begins = range.start;
            let text = &text[range];
            let hash = xxh64(text.as_bytes(), 0);
            let known = self.services.get(&hash);
            let known = match known.filter(|known| *known.text == *text) {
                Some(known) => Arc::clone(known),
                None => Arc::new(Known::read(text, file)?),
            };
            report.add_warnings(&known.warnings, begins);
            raw.services.push(Arc::clone(&known.service));
            services.insert(hash, known);
        }
        let blocklists = protection::blocklists(&raw, &report);
        validate::check_between(&raw, &mut report);
        let (errors, warnings) = report.finish();
        if !errors.is_empty() {
            return None;
        }
        self.services = services;
        Some(Loaded {
            config: validate::build(raw),
            blocklists,
            warnings,
        })
    }
}

impl Known {
    /// `None`: it has a fault, or is not one service.
    fn read(text: &str, file: &Path) -> Option<Known> {
        let mut report = Report::new(text, file);
        let document = DeTable::parse(text).ok()?;
        let services = raw::read_services(document.get_ref(), &mut report);
        let [service] = services.as_slice() else {
            return None;
        };
        validate::check_service(service, &mut report);
        Some(Known {
            text: text.into(),
            service: Arc::clone(service),
            warnings: report.warnings()?,
        })
    }
}

/// A file, cut into its services and the rest.
#[derive(Debug, Default, PartialEq)]
struct Cut {
    /// What no service has.
    rest: String,
    /// Where `rest` is in the file.
    pieces: Pieces,
    /// Where the services are.
    services: Vec<Range<usize>>,
}

impl Cut {
    fn of(text: &str) -> Cut {
        let mut cut = Cut::default();
        let mut section = Section::Rest;
        let (mut began, mut at) = (0, 0);
        for line in text.split_inclusive('\n') {
            let next = section_of(line);
            if let Some(next) =
                next.filter(|next| (*next, section) != (Section::Rest, Section::Rest))
            {
                cut.add(section, text, began..at);
                (section, began) = (next, at);
            }
            at += line.len();
        }
        cut.add(section, text, began..at);
        cut
    }

    fn add(&mut self, section: Section, text: &str, range: Range<usize>) {
        match section {
            Section::Service => self.services.push(range),
            Section::Rest => {
                self.pieces.push((self.rest.len(), range.start));
                self.rest.push_str(&text[range]);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Service,
    Rest,
}

/// What begins with a line; `None`: it goes on with what was before.
fn section_of(line: &str) -> Option<Section> {
    let blank = [' ', '\t'];
    let key = line.trim_start_matches(blank).strip_prefix('[')?;
    let (key, of_array) = match key.strip_prefix('[') {
        Some(key) => (key, true),
        None => (key, false),
    };
    let rest = key.trim_start_matches(blank).strip_prefix("service");
    match rest.map(|rest| rest.trim_start_matches(blank)) {
        Some(rest) if of_array && rest.starts_with("]]") => Some(Section::Service),
        Some(rest) if rest.starts_with('.') => None,
        _ => Some(Section::Rest),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn read(reader: &mut Reader, text: &str) -> Result<Loaded, String> {
        reader
            .parse(text, Path::new("lb.toml"))
            .map_err(|error| error.to_string())
    }

    fn read_whole(text: &str) -> Result<Loaded, String> {
        crate::config::parse(text, Path::new("lb.toml")).map_err(|error| error.to_string())
    }

    const HEAD: &str = "[datapath]\ninterfaces = [\"eth0\"]\n";

    fn service(name: &str, vip: u8) -> String {
        format!("[[service]]\nname = \"{name}\"\nvip = \"203.0.113.{vip}\"\nprotocol = \"tcp\"\nport = 80\n")
    }

    #[test]
    fn where_a_file_is_cut() {
        let parts = [
            "# one\n[datapath]\nx = 1\n[limits]\n",
            " [[ service ]] # two\n[[service.backend]]\n[service.x]\n# [log]\n",
            "[[service]]\n[[ service . backend ]]\n",
            "[log]\n[[services]]\n[service]\n",
            "[[service]]",
        ];
        let text = parts.concat();
        let cut = Cut::of(&text);
        assert_eq!(cut.rest, [parts[0], parts[3]].concat());
        let services: Vec<&str> = cut.services.into_iter().map(|range| &text[range]).collect();
        assert_eq!(services, [parts[1], parts[2], parts[4]]);
        let second = parts[..3].concat().len();
        assert_eq!(cut.pieces, [(0, 0), (parts[0].len(), second)]);
    }

    #[test]
    fn a_service_is_read_again_only_if_its_text_has_changed() {
        let mut reader = Reader::default();
        let text = [HEAD, &service("a", 1), &service("b", 2)].concat();
        assert_eq!(read(&mut reader, &text), read_whole(&text));
        let known = |reader: &Reader, name: &str| {
            let mut known = reader.services.values();
            let of_name = known.find(|known| known.service.what.contains(name));
            of_name.map(Arc::clone).expect("a service")
        };
        let (a, b) = (known(&reader, "a"), known(&reader, "b"));
        // Faulty in between: what is known stays.
        let faulty = text.replace("port = 80", "port = 0");
        let error = read(&mut reader, &faulty).expect_err("a fault");
        assert_eq!(error, read_whole(&faulty).expect_err("a fault"));
        assert!(Arc::ptr_eq(&a, &known(&reader, "a")));
        let text = [&service("b", 3), HEAD, &service("a", 1)].concat();
        assert_eq!(read(&mut reader, &text), read_whole(&text));
        assert!(Arc::ptr_eq(&a, &known(&reader, "a")));
        assert!(!Arc::ptr_eq(&b, &known(&reader, "b")));
        assert_eq!(reader.services.len(), 2, "nothing is kept of what has gone");
    }

    #[test]
    fn warnings_and_blocklists_have_their_places_in_the_file() {
        let text = [
            &service("idle", 1),
            "[firewall]\ndefault = \"deny\"\nblocklists = [\"a\"]\n",
            &service("too", 2),
            HEAD,
        ]
        .concat();
        let mut reader = Reader::default();
        let loaded = reader
            .parse_cut(&text, Path::new("lb.toml"))
            .expect("no fault");
        let lines: Vec<usize> = loaded.warnings.iter().map(|one| one.place.line).collect();
        assert_eq!(lines, [1, 7, 9]);
        assert_eq!(loaded.blocklists[0].place.line, 8);
        assert_eq!(read_whole(&text), Ok(loaded));
    }

    #[test]
    fn headers_that_are_none_are_read_with_the_whole() {
        let backends = "[[service.backend]]\naddress = \"10.0.0.1\"\n";
        for text in [
            // In a string of several lines, in both halves of which the header stands alone.
            [HEAD, "[log]\nx = \"\"\"\n", &service("a", 1), "\"\"\"\n"].concat(),
            [
                HEAD,
                &service("a", 1),
                "x = '''\n",
                &service("b", 2),
                "'''\n",
            ]
            .concat(),
            // Its own parts elsewhere, or other forms of it.
            [HEAD, &service("a", 1), "[log]\n", backends].concat(),
            [HEAD, "[[\"service\"]]\n", &service("a", 1)].concat(),
            ["service = []\n", HEAD, &service("a", 1)].concat(),
            [HEAD, &service("a", 1), "[service]\n"].concat(),
            [HEAD, &service("a", 1), HEAD].concat(),
            [HEAD, &service("a", 1), &service("a", 2)].concat(),
        ] {
            assert_eq!(
                read(&mut Reader::default(), &text),
                read_whole(&text),
                "{text}"
            );
        }
    }

    /// Lines of which texts are made, most of them in their place in some order.
    const LINES: &[&str] = &[
        "[datapath]",
        "interfaces = [\"eth0\", \"eth1\"]",
        "addresses = [\"192.0.2.1\"]",
        "[limits]",
        "services = 2",
        "[firewall]",
        "default = \"deny\"",
        "blocklists = [\"a.txt\"]",
        "[[firewall.rule]]",
        "action = \"deny\"",
        "[[dos]]",
        "[log]",
        "level = \"debug\"",
        "[[service]]",
        "  [[ service ]]  # again",
        "[['service']]",
        "[service]",
        "[service.backend]",
        "[[service.backend]]",
        "name = \"web\"",
        "name = \"dns\"",
        "vip = \"203.0.113.1\"",
        "vip = [\"203.0.113.2\", \"2001:db8::2\"]",
        "vip = \"10.0.0.1\"",
        "protocol = \"tcp\"",
        "port = 80",
        "port = \"any\"",
        "forward = \"full-nat\"",
        "allow = [\"198.51.100.0/24\"]",
        "address = \"10.0.0.1\"",
        "address = \"192.0.2.1\"",
        "address = \"2001:db8:5::1\"",
        "weight = 0",
        "interface = \"eth1\"",
        "interface = \"eth2\"",
        "backend = [{ address = \"10.0.0.2\" }]",
        "backend.address = 1",
        "x = \"\"\"",
        "\"\"\"",
        "x = [",
        "]",
        "[",
        "# é",
        "",
        "service = []",
    ];

    /// A file that is valid but for what is done to it.
    fn file() -> Vec<String> {
        let backend = |last: u8, more: &str| {
            format!("[[service.backend]]\naddress = \"10.0.0.{last}\"\n{more}")
        };
        let text = [
            HEAD,
            &service("web", 11),
            &backend(21, "weight = 3\n"),
            &backend(22, ""),
            "[firewall]\ndefault = \"deny\"\n[[firewall.rule]]\naction = \"deny\"\n",
            &service("dns", 12),
            &backend(23, ""),
            &service("idle", 13),
            "[log]\nlevel = \"debug\"\n",
            &service("last", 14),
            &backend(24, "port = 90\n"),
        ]
        .concat();
        text.lines().map(str::to_owned).collect()
    }

    #[derive(Debug, Clone)]
    enum Edit {
        Insert(Index, &'static str),
        Delete(Index),
        Duplicate(Index),
        Move(Index, Index),
        /// Another character.
        Spoil(Index, Index, char),
        Number(Index, u8),
        StartOver,
    }

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let index = any::<Index>;
        let edit = prop_oneof![
            2 => (index(), prop::sample::select(LINES)).prop_map(|(at, line)| Edit::Insert(at, line)),
            2 => index().prop_map(Edit::Delete),
            1 => index().prop_map(Edit::Duplicate),
            1 => (index(), index()).prop_map(|(from, to)| Edit::Move(from, to)),
            1 => (index(), index(), prop::sample::select(&['"', '[', ']', '=', '#', 'x', '\n', '\r'][..]))
                .prop_map(|(line, at, c)| Edit::Spoil(line, at, c)),
            4 => (index(), 0..30_u8).prop_map(|(at, number)| Edit::Number(at, number)),
            3 => Just(Edit::StartOver),
        ];
        prop::collection::vec(edit, 1..12)
    }

    fn edit(lines: &mut Vec<String>, edit: &Edit) {
        let at = |index: &Index, lines: &[String]| index.index(lines.len().max(1));
        match edit {
            Edit::Insert(index, line) => lines.insert(at(index, lines), (*line).to_owned()),
            Edit::StartOver => *lines = file(),
            _ if lines.is_empty() => {}
            Edit::Delete(index) => {
                lines.remove(at(index, lines));
            }
            Edit::Duplicate(index) => {
                let at = at(index, lines);
                lines.insert(at, lines[at].clone());
            }
            Edit::Move(from, to) => {
                let line = lines.remove(at(from, lines));
                lines.insert(at(to, lines), line);
            }
            Edit::Spoil(index, place, c) => {
                let at = at(index, lines);
                let line = &mut lines[at];
                let places: Vec<usize> = line.char_indices().map(|(place, _)| place).collect();
                if !places.is_empty() {
                    line.insert(places[place.index(places.len())], *c);
                }
            }
            Edit::Number(index, number) => {
                let at = at(index, lines);
                let line = lines[at].replace(|c: char| c.is_ascii_digit(), "1");
                lines[at] = line.replacen('1', &number.to_string(), 1);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn reading_again_is_reading_the_whole(edits in edits(), newline: bool) {
            let mut reader = Reader::default();
            let mut lines = file();
            let mut cut = 0;
            for one in std::iter::once(&Edit::StartOver).chain(&edits) {
                edit(&mut lines, one);
                let mut text = lines.join("\n");
                if newline {
                    text.push('\n');
                }
                let whole = read_whole(&text);
                let by_parts = reader.parse_cut(&text, Path::new("lb.toml"));
                if let Some(loaded) = by_parts {
                    cut += 1;
                    prop_assert_eq!(Ok(loaded), whole.clone(), "{}", text);
                }
                prop_assert_eq!(read(&mut reader, &text), whole, "{}", text);
            }
            prop_assert!(cut > 0, "never read by parts");
        }
    }
}
