//! Completion scripts and manual pages.

use std::fs;

use crate::program::{charon, tool};

#[test]
fn bash_completes_commands_and_options() {
    let folder = tempfile::tempdir().unwrap();
    let script = charon(["completion", "bash"]).run().succeeded().text();
    fs::write(folder.path().join("charon"), script).unwrap();
    let completed = |words: &str, last: usize| {
        let ask = format!(
            ". ./charon; COMP_WORDS=({words}); COMP_CWORD={last}; \
             $(complete -p charon | sed 's/.*-F \\([^ ]*\\).*/\\1/') charon \
             \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let ask = tool("bash", ["--norc", "-c", &ask]).in_folder(folder.path());
        ask.run().succeeded().text().trim().to_owned()
    };
    assert_eq!(completed("charon make-p", 1), "make-payload");
    assert_eq!(completed("charon push-payload --base", 2), "--base-repository");
    assert_eq!(completed("charon push-payload --naming w", 3), "with-host");
}

#[test]
fn there_is_a_completion_script_for_each_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = charon(["completion", shell]).run().succeeded().text();
        for word in ["make-payload", "already-transferred"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn there_is_a_manual_page_for_the_program_and_for_each_command() {
    let page = charon(["man"]).run().succeeded().text();
    insta::assert_snapshot!("manual_page", page.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    let folder = tempfile::tempdir().unwrap();
    charon(["man", "--folder"]).arguments([folder.path()]).run().succeeded();
    let mut names: Vec<String> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    insta::assert_snapshot!(names.join("\n"));
    let page = fs::read_to_string(folder.path().join("charon-push-payload.1")).unwrap();
    insta::assert_snapshot!("manual_page_of_push_payload", page);
    let refused = charon(["man", "--folder", "/nonexistent/pages"]).run().ended_with(1);
    assert_eq!(
        refused.stderr,
        "error: cannot write the manual pages to /nonexistent/pages: No such file or directory (os error 2); \
         does the folder exist?\n"
    );
}
