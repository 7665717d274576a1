# Commands with completion for bash: `source deploy/completion.bash` in the checkout.
#
# iw-service is `python -m service`, iw-workers is `python -m workers`. For the image, put
# `docker compose run --rm tool` before `python` below.
iw-service() { python -m service "$@"; }
iw-workers() { python -m workers "$@"; }

_iw_complete() {
  local kind value
  COMPREPLY=()
  while IFS=, read -r kind value; do
    [[ $kind == plain ]] && COMPREPLY+=("$value")
  done < <(env COMP_WORDS="$1 ${COMP_WORDS[*]:1}" COMP_CWORD="$COMP_CWORD" \
    "_${1^^}_COMPLETE=bash_complete" python -m "$1")
}
_iw_service() { _iw_complete service; }
_iw_workers() { _iw_complete workers; }
complete -F _iw_service iw-service
complete -F _iw_workers iw-workers
