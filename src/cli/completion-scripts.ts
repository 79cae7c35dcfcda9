/** Lists the shells with a completion script. */
export const shells = ['bash', 'zsh', 'fish', 'powershell'] as const

export type Shell = (typeof shells)[number]

/**
 * Holds the completion script of each shell. A script only passes the line to `mirror __complete` and shows its answer, so it stays
 * right after an update of the program.
 */
const scripts: Record<Shell, string> = {
  bash: String.raw`# Completion of mirror for bash.
_mirror_complete() {
  local answer
  COMPREPLY=()
  while IFS= read -r answer; do
    if [ "$answer" = ":files" ]; then
      compopt -o default 2>/dev/null
    else
      COMPREPLY+=("$answer")
    fi
  done < <(mirror __complete bash "--line=\${COMP_LINE:0:COMP_POINT}" "--breaks=$COMP_WORDBREAKS" 2>/dev/null)
}
complete -F _mirror_complete mirror
`,
  zsh: String.raw`#compdef mirror
# Completion of mirror for zsh.
_mirror() {
  local answer tab=$'\t'
  local -a values shown
  local -i files=0
  while IFS= read -r answer; do
    if [[ $answer == :files ]]; then
      files=1
    else
      values+=("\${answer%%$tab*}")
      shown+=("\${answer/$tab/  -- }")
    fi
  done < <(mirror __complete zsh "--current=\${(Q)PREFIX}" -- "\${(@Q)words[2,CURRENT-1]}" 2>/dev/null)
  (( \${#values} )) && compadd -l -d shown -a values
  (( files )) && _files
}
if [[ $funcstack[1] == _mirror ]]; then
  _mirror "$@"
else
  compdef _mirror mirror
fi
`,
  fish: String.raw`# Completion of mirror for fish.
function __mirror_complete
    set -l previous (commandline -opc)
    set -e previous[1]
    set -l current (commandline -ct)
    set -l answers (mirror __complete fish "--current=$current" -- $previous 2>/dev/null)
    if contains -- :files $answers
        __fish_complete_path (commandline -ct)
    else
        printf '%s\n' $answers
    end
end
complete -c mirror -f -a '(__mirror_complete)'
`,
  powershell: String.raw`# Completion of mirror for PowerShell.
Register-ArgumentCompleter -Native -CommandName mirror -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $previous = @($commandAst.CommandElements | Select-Object -Skip 1 |
        Where-Object { $_.Extent.EndOffset -lt $cursorPosition } |
        ForEach-Object { if ($null -ne $_.Value) { [string]$_.Value } else { $_.Extent.Text } })
    mirror __complete powershell "--current=$wordToComplete" -- @previous 2>$null | ForEach-Object {
        $value, $text = $_ -split [char]9, 2
        # Without an answer, PowerShell completes files.
        if ($value -ne ':files') {
            if (-not $text) { $text = $value }
            [System.Management.Automation.CompletionResult]::new($value, $value, 'ParameterValue', $text)
        }
    }
}
`,
}

/** Returns the completion script of a shell. */
export function getCompletionScript(shell: Shell): string {
  return scripts[shell].replaceAll('\\${', '${')
}

/** Explains how to install the completion of each shell. */
export const installation = `mirror completion SHELL prints a script that completes
commands, flags, clients, images and upstreams.

bash (with the package bash-completion)
  mkdir -p ~/.local/share/bash-completion/completions
  mirror completion bash > ~/.local/share/bash-completion/completions/mirror
bash (without it: add this line to ~/.bashrc)
  eval "$(mirror completion bash)"

zsh (add the second line to ~/.zshrc)
  mkdir -p ~/.zfunc && mirror completion zsh > ~/.zfunc/_mirror
  fpath+=(~/.zfunc); autoload -Uz compinit && compinit

fish
  mkdir -p ~/.config/fish/completions
  mirror completion fish > ~/.config/fish/completions/mirror.fish

PowerShell (add this line to the file $PROFILE)
  mirror completion powershell | Out-String | Invoke-Expression`
