package android.content.res

import java.io.File
import java.io.FileInputStream

class AssetFileDescriptor(file: File) {
    val fileDescriptor = FileInputStream(file).fd
    val startOffset = 0L
    val declaredLength = file.length()
}

class AssetManager(private val folder: File) {
    fun openFd(name: String) = AssetFileDescriptor(File(folder, name))
}
