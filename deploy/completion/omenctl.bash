# Bash completion of omenctl: commands, their options, and names of collections where one is wanted.
#   source deploy/completion/omenctl.bash        (or copy it to /etc/bash_completion.d/omenctl)

_omenctl_options() {
    case $1 in
    'collections create') echo --dim --metric --field --shard-key --shards --replication --recall-target \
        --profile --option ;;
    'collections set') echo --profile ;;
    'collections drop') echo --yes ;;
    'cluster init') echo --name ;;
    'node add') echo --labels ;;
    'node drain') echo --dry-run --wait ;;
    'replica move') echo --wait ;;
    'operations cancel') echo --plan --all ;;
    'operations '*) echo --watch ;;
    'cluster version') echo --hold --release ;;
    'rebalance '*) echo --apply --throttle --wait ;;
    'points upsert') echo --batch --ttl --wait ;;
    'points get') echo --shard-key --with-vectors ;;
    'points delete') echo --from --filter --shard-key ;;
    'points scroll') echo --limit --all --filter --with-vectors --no-payload ;;
    'points count') echo --filter --allow-partial ;;
    'points delete-payload') echo --path --filter --shard-key ;;
    'points '*) echo --filter --shard-key ;;
    'import '*) echo --collection --create --shard-key --shards --replication --batch --depth --limit --id-field \
        --no-bulk ;;
    'search '*) echo --vector --vector-file --id --shard-key --query-file --row --all --truth --k --offset --filter \
        --score-threshold --field --consistency --show --with-payload --no-payload --with-vectors --allow-partial ;;
    esac
}

_omenctl_collections() {
    omenctl --timeout 1s --json collections list 2>/dev/null | grep -o '{"name":"[^"]*","id"' | cut -d '"' -f 4
}

_omenctl() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} words=() word skip= candidates=
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [ -n "$skip" ]; then skip=; continue; fi
        case $word in
        --endpoint | --api-key-file | --timeout | --op-id) skip=1 ;;
        -*) ;;
        *) words+=("$word") ;;
        esac
    done
    case $previous in
    --metric) candidates='cosine l2 ip' ;;
    --profile) candidates='speed balanced quality' ;;
    --wait) candidates='accepted committed indexed' ;;
    --consistency) candidates='session eventual linearizable' ;;
    --api-key-file | --vector-file | --query-file | --truth | --from)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return ;;
    esac
    if [ -z "$candidates" ] && [[ $current == -* ]]; then
        candidates="$(_omenctl_options "${words[0]} ${words[1]}") --endpoint --api-key-file --json --timeout --op-id --help"
    elif [ -z "$candidates" ]; then
        case "${#words[@]} ${words[*]}" in
        '0 '*) candidates='status collections points import search alias cluster node replica leader rebalance operations help' ;;
        '1 cluster') candidates='init status throttle version' ;;
        '1 node') candidates='list add drain activate remove label' ;;
        '1 replica') candidates='move' ;;
        '1 leader') candidates='transfer' ;;
        '1 operations') candidates='cancel' ;;
        '1 collections') candidates='create list describe set drop alias' ;;
        '2 collections alias' | '1 alias') candidates='set drop' ;;
        '1 points') candidates='upsert get delete scroll count set-payload overwrite-payload delete-payload' ;;
        '1 search' | '2 points '* | '2 collections describe' | '2 collections set' | '2 collections drop') candidates=$(_omenctl_collections) ;;
        '1 import')
            mapfile -t COMPREPLY < <(compgen -d -- "$current")
            return ;;
        '3 points upsert '*)
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$candidates" -- "$current")
}

complete -o filenames -F _omenctl omenctl
