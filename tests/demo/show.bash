# shellcheck shell=bash
# Sourced. How a demo shows what it does and what comes of it.

bold='' dim='' plain=''
if [[ -t 1 ]]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi
step_began=''

# step TEXT: the heading of what follows; says how long the step before took.
step() {
    step_ends
    printf '\n%s== %s%s\n' "$bold" "$*" "$plain"
    step_began=$EPOCHREALTIME
}

step_ends() {
    [[ -z $step_began ]] || printf '%s   %s%s\n' "$dim" "took $(since "$step_began")" "$plain"
    step_began=''
}

since() {
    awk -v began="$1" -v now="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", now - began }'
}

say() {
    printf '   %s\n' "$*"
}

# run COMMAND…: shows a command and runs it.
run() {
    printf '$ %s\n' "$*"
    "$@"
}

# apply FILE: shows a manifest and applies it.
apply() {
    printf '$ cat %s\n%s' "$1" "$dim"
    cat "$1"
    printf '%s' "$plain"
    run kubectl apply -f "$1"
}

fail() {
    printf '%s\n' "demo: $*" >&2
    exit 1
}

size() {
    numfmt --to=si --suffix=B --format=%.1f "$1"
}

# until_ready NAMESPACE KIND NAME: shows the resource until it is ready.
until_ready() {
    local watch end=$((SECONDS + 120))
    printf '$ kubectl -n %s get %s %s --watch\n' "$@"
    kubectl -n "$1" get "$2" "$3" --watch &
    watch=$!
    while ((SECONDS < end)); do
        if [[ $(condition "$@" Ready) == True ]]; then
            sleep 0.2 # its last line
            kill "$watch"
            wait "$watch" || true
            return
        fi
        if [[ $(condition "$@" Stalled) == True ]]; then fail "$2 $3 is stalled"; fi
        sleep 0.2
    done
    fail "$2 $3 was not ready in time"
}

condition() {
    kubectl -n "$1" get "$2" "$3" -o "jsonpath={.status.conditions[?(@.type==\"$4\")].status}"
}

payload() {
    local digest bytes
    read -r digest bytes < <(kubectl -n "$1" get "$2" "$3" -o jsonpath='{.status.payload.digest} {.status.payload.sizeBytes}{"\n"}')
    say "payload $digest, $(size "$bytes")"
}
