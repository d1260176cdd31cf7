# shellcheck shell=bash
# Sourced. Where built programs are kept: outside every checkout, so that all of them share one build.

cache=${CHARON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/charon}

# cached NAME KEY COMMAND…: sees to it that the folder $cache/NAME-KEY is there, and puts its path into $cached.
# COMMAND gets the path of an empty folder as its last argument and fills it. The folder takes its name only when
# COMMAND has ended well, so what an interrupted build leaves never looks whole. A second checkout waits, and then
# finds the work done. COMMAND runs without `set -e` (bash takes it away inside a condition): chain with &&.
cached() {
    local name=$1 key=$2
    shift 2
    cached=$cache/$name-$key
    [[ -d $cached ]] && return
    mkdir -p "$cache"
    (
        flock 9
        [[ -d $cached ]] && exit
        work=$cache/.building-$name
        rm -rf "$work"
        mkdir "$work"
        SECONDS=0
        printf 'building %s %s' "$name" "$key" >&2
        if ! "$@" "$work" >"$work.log" 2>&1 9>&-; then
            printf ': failed\n' >&2
            tail -n 30 "$work.log" >&2
            exit 1
        fi
        mv -T "$work" "$cached"
        rm "$work.log"
        printf ' (%d s)\n' "$SECONDS" >&2
    ) 9>"$cache/.lock-$name"
}

# key FILE…: a short name for the files' content.
key() {
    cat -- "$@" | sha256sum | cut -c1-12
}

# go_install [-ldflags FLAGS] PACKAGE@VERSION… FOLDER: static programs, without this machine's paths in them.
go_install() {
    local flags='-s -w'
    if [[ $1 == -ldflags ]]; then
        flags+=" $2"
        shift 2
    fi
    local folder=${!#}
    GOBIN=$folder CGO_ENABLED=0 go install -trimpath -ldflags "$flags" "${@:1:$#-1}"
}
