//! `ebb ctl heat`: which part of guest memory was used when, in the terminal or as a picture in a file.
//!
//! Promises: a file is written whole or, on an error, named in it. Must never: send colours where nobody sees them, unless asked to.

mod font;
mod picture;
mod plot;
mod raster;
mod shade;
mod svg;
mod terminal;

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal};
use std::path::Path;

use memtier::insight::HeatMap;

use super::args::{Colour, HeatArgs};
use super::{CtlError, Session, parse};
use crate::cli::{CliError, print};
use picture::{DEFAULT_WIDTH, Picture};

/// The terminal's width when it can't be told.
const TERMINAL_WIDTH: usize = 80;

pub(super) fn heat(session: &Session, args: &HeatArgs) -> Result<(), CliError> {
    let target = "/memtier/heat";
    let bytes = session.get(target)?;
    let map: HeatMap = parse(target, &bytes)?;
    let mut written = Vec::new();
    if args.svg.is_some() || args.png.is_some() {
        let picture = Picture::new(&map, args.width.unwrap_or(DEFAULT_WIDTH)).ok_or(CtlError::NoHeat)?;
        if let Some(path) = &args.svg {
            fs::write(path, svg::svg(&picture)).map_err(|source| unwritten(path, source))?;
            written.push(path);
        }
        if let Some(path) = &args.png {
            write_png(path, &picture).map_err(|source| unwritten(path, source))?;
            written.push(path);
        }
    }
    if session.json {
        return session.print_json(&bytes);
    }
    if !written.is_empty() {
        return written.iter().try_for_each(|path| print(&format!("heat map written to {}\n", path.display())));
    }
    let width = args.width.and_then(|width| usize::try_from(width).ok()).unwrap_or_else(terminal_width);
    print(&terminal::draw(&map, width, wants_colours(args.color)).ok_or(CtlError::NoHeat)?)
}

fn write_png(path: &Path, picture: &Picture) -> io::Result<()> {
    raster::png(picture, BufWriter::new(File::create(path)?))
}

fn unwritten(path: &Path, source: io::Error) -> CtlError {
    CtlError::Write { path: path.to_owned(), source }
}

fn terminal_width() -> usize {
    terminal_size::terminal_size().map_or(TERMINAL_WIDTH, |(width, _)| usize::from(width.0))
}

/// As <https://no-color.org> asks, and as terminals that can't do it say.
fn wants_colours(colour: Colour) -> bool {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    match colour {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => io::stdout().is_terminal() && !no_colour && !dumb,
    }
}
