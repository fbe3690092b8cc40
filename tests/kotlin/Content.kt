// What PocketSam.kt uses of Android, so that it compiles on a JVM. Assets are files in a folder.

package android.content

import android.content.res.AssetManager
import java.io.File

class ContentResolver

class Context(folder: File) {
    val assets = AssetManager(folder)
    val contentResolver = ContentResolver()
}
