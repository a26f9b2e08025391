//! Enumerations whose values are words for programs: in JSON, in the database, as metric labels.

/// Defines such an enumeration: `as_str` and serde write the words, `named` reads them. A value can
/// have a text for people besides, `Name = "word" => "text"`; `text` returns it, or the word. With
/// `pub enum Name: Display`, Display writes that.
macro_rules! words {
    (@text $word:literal) => { $word };
    (@text $word:literal $text:literal) => { $text };
    ($(#[$meta:meta])* pub enum $name:ident $(: $display:ident)? {
        $($(#[$doc:meta])* $variant:ident = $word:literal $(=> $text:literal)?,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[allow(rustdoc::broken_intra_doc_links, reason = "texts name sections, as in `[defrag]`")]
        pub enum $name { $($(#[$doc])* #[doc = words!(@text $word $($text)?)] #[serde(rename = $word)] $variant,)+ }

        #[allow(dead_code, reason = "not every enumeration of words needs each of these")]
        impl $name {
            /// All values.
            pub const ALL: [$name; [$($word),+].len()] = [$($name::$variant),+];

            /// The word for programs; it never changes.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }

            /// The text for people.
            pub const fn text(self) -> &'static str {
                match self { $($name::$variant => words!(@text $word $($text)?),)+ }
            }

            /// The value with this word.
            pub fn named(word: &str) -> Option<$name> {
                $name::ALL.into_iter().find(|value| value.as_str() == word)
            }
        }

        $(impl std::fmt::$display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.text())
            }
        })?
    };
}

pub(crate) use words;
