// Command verdict tells what GitOps tools make of an object: kstatus, which Flux, Helm and kustomize ask, and a
// health script of Argo CD, run by the interpreter that Argo CD has.
//
//	verdict health.lua <objects
//
// Each line of standard input is an object as JSON; each line of standard output has kstatus' word and Argo CD's, with
// a tab between them.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "verdict:", err)
		os.Exit(1)
	}
}

func run() error {
	script, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		object := map[string]any{}
		if err := json.Unmarshal(lines.Bytes(), &object); err != nil {
			return err
		}
		// kstatus reads numbers as the API machinery does, as int64.
		typed := unstructured.Unstructured{}
		if err := typed.UnmarshalJSON(lines.Bytes()); err != nil {
			return err
		}
		result, err := status.Compute(&typed)
		if err != nil {
			return err
		}
		health, err := argo(string(script), object)
		if err != nil {
			return err
		}
		fmt.Printf("%s\t%s\n", result.Status, health)
	}
	return lines.Err()
}

// As Argo CD does it: the object is the global `obj`, only the safe libraries are open, the script returns a table.
func argo(script string, object map[string]any) (string, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName:   lua.OpenBase,
		lua.TabLibName:    lua.OpenTable,
		lua.StringLibName: lua.OpenString,
		lua.MathLibName:   lua.OpenMath,
	} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return "", err
		}
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(script); err != nil {
		return "", err
	}
	health, isTable := state.Get(-1).(*lua.LTable)
	if !isTable {
		return "", fmt.Errorf("the script returns no table")
	}
	return health.RawGetString("status").String(), nil
}

func value(state *lua.LState, of any) lua.LValue {
	switch of := of.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, item := range of {
			table.RawSetString(key, value(state, item))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, item := range of {
			table.Append(value(state, item))
		}
		return table
	case string:
		return lua.LString(of)
	case float64:
		return lua.LNumber(of)
	case bool:
		return lua.LBool(of)
	default:
		return lua.LNil
	}
}
